"""The order of the stages, read from DVC: there is no second graph."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from vall_e.config import ConfigError

if TYPE_CHECKING:
    from dvc.stage import Stage


def stage_order(root: str | Path = ".", targets: Sequence[str] = (), *, upstream: bool = True) -> list[str]:
    """The stages of ``dvc.yaml`` so that each comes after what it depends on; ties in alphabetical order.

    Args:
        root: the project's folder.
        targets: only these stages and what they depend on; by default all of the folder's own ``dvc.yaml``.
        upstream: False: only these stages.

    Raises:
        ConfigError: no DVC project, no such stage, or a ``dvc.yaml`` that DVC cannot read.
    """
    import networkx as nx
    from dvc.exceptions import DvcException
    from dvc.repo import Repo

    try:
        with Repo(str(root)) as repo:
            graph = nx.DiGraph()
            for stage in repo.index.graph.nodes:
                graph.add_node(_address(stage, root))
            for stage, dependency in repo.index.graph.edges:
                graph.add_edge(_address(dependency, root), _address(stage, root))
    except DvcException as error:
        raise ConfigError(f"{Path(root).resolve()}: DVC cannot read the pipeline: {error}") from None
    if unknown := sorted(set(targets) - set(graph)):
        raise ConfigError(f"no stage {', '.join(unknown)} in dvc.yaml; there are {', '.join(sorted(graph))}")
    order = list(nx.lexicographical_topological_sort(graph))
    targets = targets or [stage for stage in order if ":" not in stage and not stage.endswith(".dvc")]
    chosen = set(targets).union(*(nx.ancestors(graph, target) for target in targets if upstream))
    return [stage for stage in order if stage in chosen]


def metrics_of(root: str | Path, stages: Sequence[str]) -> set[str]:
    """The metrics files, by name without ``.json``, that the stages write."""
    from dvc.repo import Repo

    with Repo(str(root)) as repo:
        written = [out for stage in repo.index.stages if _address(stage, root) in stages for out in stage.outs]
        return {Path(out.fs_path).stem for out in written if out.metric}


def _address(stage: Stage, root: str | Path) -> str:
    """What DVC calls a stage in the folder ``root``, wherever this process is."""
    file, name = os.path.relpath(stage.path, root), getattr(stage, "name", None)
    return file if name is None else name if file == "dvc.yaml" else f"{file}:{name}"
