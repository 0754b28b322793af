"""A run folder on its way through the store: whole or not at all, nothing of the machine, nothing that nobody needs any more."""

from __future__ import annotations

import json

import pytest

from ft_pipeline.errors import IntegrityError
from ft_pipeline.workers.kubernetes.carried import Carrier, Inbox, Outbox, carried_step, forget, is_known
from ft_pipeline.workers.messages import Mailbox, log

RUN = "f" * 64


def checkpoint(folder, step: int, text: str = "weights"):
    place = folder / "checkpoints" / f"step-{step:08d}"
    place.mkdir(parents=True)
    (place / "state.json").write_text(f"{text} {step}")


def test_a_folder_arrives_as_it_was_sent_without_what_belongs_to_the_machine(store, tmp_path):
    here, there = tmp_path / "here", tmp_path / "there"
    checkpoint(here, 7)
    for name in ("metrics.jsonl", "job.json", "lock", "log.txt", "messages.jsonl", ".metrics.tmp"):
        (here / name).write_text(name)
    assert Carrier(store, RUN, here).send() and not Carrier(store, RUN, there).newest()
    got = Carrier(store, RUN, there)
    assert got.fetch() == ["checkpoints/step-00000007/state.json", "metrics.jsonl"]
    assert (there / "checkpoints/step-00000007/state.json").read_text() == "weights 7"
    assert carried_step(store, RUN) == 7 and got.newest() == "step-00000007"
    assert not got.send()


def test_what_no_list_names_any_more_goes_one_list_later(store, tmp_path):
    here = tmp_path / "here"
    sender = Carrier(store, RUN, here)
    for step in (1, 2, 3):
        checkpoint(here, step)
        if step > 1:
            (here / "checkpoints" / f"step-{step - 1:08d}" / "state.json").unlink()
        sender.send()
    # the present one and that of the list before, by which another pod may still be fetching
    assert len(store.bucket.list(f".runs/{RUN}/objects")) == 2
    assert Carrier(store, RUN, tmp_path / "there").fetch() == ["checkpoints/step-00000003/state.json"]


def test_bytes_that_are_not_what_the_list_says_are_refused(store, tmp_path):
    checkpoint(tmp_path / "here", 1)
    Carrier(store, RUN, tmp_path / "here").send()
    (name,) = store.bucket.list(f".runs/{RUN}/objects")
    store.bucket.write(f".runs/{RUN}/objects/{name}", b"other")
    with pytest.raises(IntegrityError, match="arrived with other bytes"):
        Carrier(store, RUN, tmp_path / "there").fetch()


def test_it_travels_through_a_bucket_too(s3_bucket, tmp_path):
    from ft_pipeline import settings
    from ft_pipeline.store.artifacts import Store
    from ft_pipeline.store.files import Bucket

    store = Store(Bucket(s3_bucket, settings.load().s3_endpoint), tmp_path / "work")
    checkpoint(tmp_path / "here", 4)
    Carrier(store, RUN, tmp_path / "here").send()
    assert Carrier(store, RUN, tmp_path / "there").fetch() == ["checkpoints/step-00000004/state.json"]
    mailbox = Mailbox(tmp_path / "messages.jsonl")
    log(mailbox, "one")
    Outbox(store, RUN, "g", "0", mailbox.path).send()
    assert [m.text for m in Inbox(store, RUN, "g").read()] == ["one"]
    assert is_known(store, RUN)
    forget(store, RUN)
    assert not is_known(store, RUN)


def test_messages_are_read_once_in_order_and_half_a_line_waits(store, tmp_path):
    mailbox = Mailbox(tmp_path / "messages.jsonl")
    out, inbox = Outbox(store, RUN, "g1", "0", mailbox.path), Inbox(store, RUN, "g1")
    log(mailbox, "one")
    out.send()
    log(mailbox, "two")
    with mailbox.path.open("a") as file:
        file.write(json.dumps({"kind": "log", "text": "three"})[:-1])
    out.send()
    assert [m.text for m in inbox.read()] == ["one", "two"]
    with mailbox.path.open("a") as file:
        file.write("}\n")
    out.send()
    assert [m.text for m in inbox.read()] == ["three"] and not list(inbox.read())
    assert [m.text for m in Inbox(store, RUN, "g1").read()] == ["one", "two", "three"]
    assert not list(Inbox(store, RUN, "another generation").read())
