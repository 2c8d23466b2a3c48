from __future__ import annotations

import threading

from muco.io.lock import alone


def test_the_one_who_waited_holds_the_file_that_the_next_will_find(tmp_path):
    """Whoever leaves removes the file: a waiter must not be content with what is gone."""
    path = tmp_path / "a.lock"
    inside, most, orders = [], [], threading.Barrier(8)

    def enter() -> None:
        orders.wait()
        for _ in range(50):
            with alone(path):
                inside.append(None)
                most.append((len(inside), path.is_file()))
                inside.pop()

    threads = [threading.Thread(target=enter) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert set(most) == {(1, True)}
    assert len(most) == 400
    assert not path.exists()
