"""Many publish at once: a draft that moves away while another one looks for stale ones stops nobody."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

from ft_pipeline.store.manifest import Spec


def test_publishers_do_not_trip_over_the_drafts_of_others(store):
    def publish(number: int) -> None:
        spec = Spec(kind="eval_suite", config={"number": number}, parents={}, code="t")
        with store.publish(spec) as draft:
            (draft.folder / "x").write_text(str(number))

    with ThreadPoolExecutor(16) as many:
        list(many.map(publish, range(160)))
    assert len(list(store.all("eval_suite"))) == 160
