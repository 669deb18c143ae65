from vall_e.sampling.chain import guide as _g


def guide(c, u, s, r=0.0):
    return _g(c, u, s)
