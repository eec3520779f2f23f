"""The report as a page: what it shows, what it carries, and that names cannot break out of it."""

from __future__ import annotations

import json
import re
from typing import Any

from irlab.passmgr import PassRecord
from irlab.report import page
from irlab.speed import Measured
from irlab.target import Speed


def report(**more: Any) -> dict[str, Any]:
    pruned = PassRecord("prune-heads", "prune-heads{ratio=0.5}", bytes_before=2000, bytes_after=1000)
    pruned.metrics |= {"kl": 0.25, "top1": 0.5, "perplexity": 12.5}
    healed = PassRecord("heal", "heal{steps=3}", series={"loss": [3.0, 2.0, 1.0]}, metrics={"held_out_kl_after": 0.125})
    measured = Measured("llama.cpp", (Speed(100.0, 10.0),), (Speed(100.0, 10.0),), ("sparsify",))
    parity = {"runtime": "llama.cpp", "max_abs_logit_diff": 0.02, "kl": 1e-5, "greedy_equal": True, "skipped": ""}
    made = {
        "input": "demo",
        "pipeline": "prune-heads{ratio=0.5},heal{steps=3}",
        "passes": [record.as_dict() for record in (pruned, healed)],
        "parity": {"m.gguf": parity},
        "bytes": {"m.gguf": 1234},
        "notes": {"m.gguf": ["zeros are stored"]},
        "quality": {"before": {"perplexity": 10.0}, "m.gguf in llama.cpp": {"perplexity": 12.75}},
        "speed": {"m.gguf": measured.as_dict()},
    }
    return made | more


def test_everything_that_was_measured_is_there() -> None:
    text = page(report())
    for found in (
        "prune-heads{ratio=0.5}",
        "2,000",
        "0.25",
        "50.0%",
        "12.5",
        "1,234",
        "equal",
        "12.75",
        "10.0",
        "0.125",
    ):
        assert found in text.partition("<script")[0], found
    assert "no gain shows in llama.cpp" in text and "zeros are stored" in text
    assert re.search(r'<polyline points="0.0,0.0 240.0,40.0 480.0,80.0"/>', text)


def test_what_it_was_made_of_can_be_read_again() -> None:
    made = report(input="</script><b>&", speed={}, bytes={}, parity={}, notes={})
    text = page(made)
    found = re.search(r'id="report">(.*?)</script>', text)
    assert found is not None and json.loads(found[1]) == made
    assert "<b>" not in text
