"""The cursor counts clips. No clip is lost or counted twice if a resumed run has another batch size."""

import itertools

import pytest
import torch

from trainer.cursor import Cursor

EPOCH = 39


@pytest.mark.parametrize("batch_size", [1, 4, 8, 13, 38, 39, 40, 100])
def test_an_epoch_in_steps(batch_size: int) -> None:
    cursor = Cursor(batch_size=batch_size, epoch_clips=EPOCH, epoch=2)
    assert cursor.num_steps == len(range(0, EPOCH, batch_size))
    for step in range(cursor.num_steps):
        assert (cursor.step, cursor.clips) == (step, step * batch_size)
        assert not cursor.epoch_is_done
        assert cursor.total_steps == 2 * cursor.num_steps + step
        cursor.finish_step()
    assert (cursor.step, cursor.clips) == (cursor.num_steps, EPOCH)
    assert cursor.epoch_is_done
    assert cursor.total_clips == 3 * EPOCH
    cursor.start_next_epoch()
    assert (cursor.epoch, cursor.step, cursor.clips, cursor.total_clips) == (3, 0, 0, 3 * EPOCH)


def test_another_batch_size_skips_no_clip_and_repeats_less_than_a_step() -> None:
    for before, after in itertools.product((1, 4, 8, 13, 40), repeat=2):
        for step in range(Cursor(batch_size=before, epoch_clips=EPOCH).num_steps + 1):
            first, second = (Cursor(batch_size=size, epoch_clips=EPOCH) for size in (before, after))
            for _ in range(step):
                first.finish_step()
            second.load_state_dict(first.state_dict(), before, EPOCH)
            assert second.clips == first.clips
            if first.epoch_is_done:
                assert second.epoch_is_done
                continue
            assert 0 <= first.clips - second.step * after < after
            second.finish_step()
            # the first record after the resume has more clips than every record from before it
            assert first.clips < second.clips <= EPOCH


def test_what_a_snapshot_holds_comes_back_and_is_a_copy() -> None:
    cursor = Cursor(batch_size=8, epoch_clips=EPOCH, epoch=1, clips=16, best=0.5, best_file="best.pth", rollbacks=2)
    cursor.validations.append({"epoch": 1, "acc": 0.5})
    cursor.count_bad(torch.tensor(False))
    again = Cursor(batch_size=8, epoch_clips=EPOCH)
    memory = again.bad_steps.data_ptr()
    again.load_state_dict(cursor.state_dict(), 8, EPOCH)
    assert again.bad_steps.tolist() == [1, 1]
    assert again.bad_steps.data_ptr() == memory  # the address must not change, because a CUDA graph may use it
    assert (again.epoch, again.clips, again.best, again.best_file, again.rollbacks) == (1, 16, 0.5, "best.pth", 2)
    cursor.count_bad(torch.tensor(True))
    cursor.validations.append({"epoch": 2, "acc": 0.6})
    assert again.bad_steps.tolist() == [1, 1]
    assert again.validations == [{"epoch": 1, "acc": 0.5}]


@pytest.mark.parametrize(("step", "clips"), [(0, 0), (3, 24), (5, EPOCH)])
def test_a_snapshot_of_an_older_version_counts_steps(step: int, clips: int) -> None:
    cursor = Cursor(batch_size=4, epoch_clips=EPOCH)
    cursor.load_state_dict({"epoch": 1, "step": step, "best": 0.5}, 8, EPOCH)
    assert (cursor.epoch, cursor.clips, cursor.best, cursor.rollbacks) == (1, clips, 0.5, 0)


def test_steps_without_finite_gradients() -> None:
    cursor = Cursor(batch_size=8, epoch_clips=EPOCH)
    for ok, total, in_a_row in ((False, 1, 1), (False, 2, 2), (True, 2, 0), (False, 3, 1)):
        cursor.count_bad(torch.tensor(ok))
        assert cursor.bad_steps.tolist() == [total, in_a_row]


@pytest.mark.parametrize("present", [1, 7, EPOCH, 1000])
def test_a_change_of_the_data_neither_ends_an_epoch_nor_begins_a_finished_one_again(present):
    for clips in range(EPOCH + 1):
        cursor = Cursor(batch_size=8, epoch_clips=present)
        cursor.load_state_dict({"clips": clips}, 8, EPOCH)
        cursor.keep_share(EPOCH)
        assert cursor.epoch_is_done == (clips == EPOCH)
        assert abs(cursor.clips / present - clips / EPOCH) < 1 / present
