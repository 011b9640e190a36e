"""Tickets that are read twice or left early."""

from __future__ import annotations

import asyncio

from vlkv.scheduler import Ticket


def test_a_finished_ticket_can_be_read_again():
    ticket = Ticket()
    ticket.push("a")
    ticket.push("b")
    ticket.end("stop")
    for _ in range(3):
        assert list(ticket) == ["a", "b"]

    async def again():
        return [piece async for piece in ticket]

    assert asyncio.run(asyncio.wait_for(again(), 20)) == ["a", "b"]


def test_leaving_an_async_for_early_cancels():
    async def first(ticket):
        async for piece in ticket:
            return piece
        return None

    async def broken(ticket):
        async for _ in ticket:
            break
        await asyncio.sleep(0.01)

    for leave in (first, broken):
        ticket = Ticket()
        ticket.push("a")
        asyncio.run(asyncio.wait_for(leave(ticket), 20))
        assert ticket.over(0.0) == "cancelled"
    ended = Ticket()
    ended.push("a")
    ended.end("stop")
    asyncio.run(first(ended))
    assert ended.over(0.0) is None


def test_several_readers_at_once_get_the_whole_answer():
    ticket = Ticket()
    ticket.push("a")
    heard, first, second = [], iter(ticket), iter(ticket)
    ticket.listen(lambda _, piece: heard.append(piece))
    assert (next(first), next(second)) == ("a", "a")
    ticket.push("b")
    assert next(first) == "b"
    first.close()
    ticket.push("c")
    ticket.end("stop")
    assert list(second) == ["b", "c"]
    assert heard == ["a", "b", "c", None]

    async def both():
        ticket = Ticket()

        async def read():
            return [piece async for piece in ticket]

        tasks = [asyncio.create_task(read()) for _ in range(3)]
        await asyncio.sleep(0.01)
        ticket.push("a")
        ticket.end("stop")
        return await asyncio.wait_for(asyncio.gather(*tasks), 20)

    assert asyncio.run(both()) == [["a"]] * 3
