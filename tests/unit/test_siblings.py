"""Which instance takes the next request: the one with the least work."""

import threading

from instantid.serving.siblings import Siblings


def test_the_one_with_more_work_stays_away_until_it_has_no_more(tmp_path):
    mine, other = Siblings(tmp_path / "s", "mine"), Siblings(tmp_path / "s", "other")
    backlog = [3.0]
    other.publish(1.0)
    waiting = threading.Thread(target=mine.wait_turn, args=(lambda: backlog[0],), daemon=True)
    waiting.start()
    waiting.join(0.1)
    assert waiting.is_alive()
    backlog[0] = 1.0
    waiting.join(5)
    assert not waiting.is_alive()


def test_the_one_with_less_work_returns_at_once(tmp_path):
    mine, other = Siblings(tmp_path / "s", "mine"), Siblings(tmp_path / "s", "other")
    other.publish(2.0)
    mine.wait_turn(lambda: 1.9)
    assert mine.least() == 2.0
    assert other.least() == 0.0


def test_an_instance_by_itself_waits_for_nobody_and_leaves_nothing(tmp_path):
    alone = Siblings(tmp_path / "s", "alone")
    alone.wait_turn(lambda: 100.0)
    alone.close()
    assert not (tmp_path / "s").exists()


def test_a_file_that_is_being_written_is_passed_over(tmp_path):
    mine = Siblings(tmp_path / "s", "mine")
    (tmp_path / "s" / "other").write_text("")
    assert mine.least() == float("inf")
