"""The scheduler over vLLM's batch. Runs where vLLM is installed: requirements/vllm.txt."""

from __future__ import annotations

import asyncio
import time

import numpy as np

from llasa.serving.scheduler import Scheduler
from tests.generation.test_engine_vllm import SAMPLED, TEXTS, Pair, needs_vllm, save_model


@needs_vllm
def test_requests_that_come_and_go_get_the_codes_of_generate(tmp_path):
    """Fails when vLLM cannot be driven from the scheduler's thread, or keeps what was cancelled."""
    pair = Pair(save_model(tmp_path), batch_size=2)
    requests = [pair.request(text, seed=number) for number, text in enumerate(TEXTS)]
    expected = [result.codes.tolist() for result in pair.hf.generate(pair.speech, requests, SAMPLED)]

    async def run():
        scheduler = Scheduler(
            lambda: pair.vllm.open(pair.contract, capacity=256), batch_size=pair.vllm.batch_size, queue=10
        )
        scheduler.start()
        tickets = [scheduler.submit(request, SAMPLED, time.monotonic() + 60) for request in requests]
        first = await anext(tickets[0])
        assert len(first.codes)
        tickets[0].cancel()
        tickets[3].cancel()
        found = [np.concatenate([part.codes async for part in ticket] or [np.zeros(0)]) for ticket in tickets]
        assert (scheduler.num_running, scheduler.num_waiting) == (0, 0)
        await scheduler.close(5)
        return [codes.tolist() for codes in found]

    found = asyncio.run(run())
    assert pair.vllm.num_unfinished == 0
    left = [0, 3]
    assert [codes for number, codes in enumerate(found) if number not in left] == [
        codes for number, codes in enumerate(expected) if number not in left
    ]
    assert found[3] == []
