"""The situations of `situations.py` on two ranks, under DistributedDataParallel and FSDP2."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.contract.rank_pair import Pair, check
from tests.contract.situations import SITUATIONS, Situation

pytestmark = [pytest.mark.slow, pytest.mark.distributed]


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Pair]:
    ranks = Pair(tmp_path_factory.mktemp("ranks"))
    yield ranks
    ranks.close()


@pytest.mark.parametrize("kind", ["ddp", "fsdp"])
@pytest.mark.parametrize("situation", SITUATIONS, ids=lambda each: each.__name__)
def test_two_ranks(pair: Pair, situation: Situation, kind: str) -> None:
    check(pair.run(situation, kind))
