"""What a run keeps of its rounds: all, what is named, nothing."""

import functools

import jax
import numpy as np
import pytest

import walks
from fedjax_sim import simulate
from fedjax_sim.base import Algorithm
from fedjax_sim.simulate import NotKept
from fedjax_sim.simulate.segments import SEGMENT_BYTES, longest_segment


@functools.cache
def whole() -> simulate.Result:
    return walks.run(num_rounds=7, segment_rounds=3)


def test_what_is_named_is_kept_as_it_would_be() -> None:
    keep = ("bytes_up", "cohort.loss", "server")
    result = walks.run(num_rounds=7, segment_rounds=3, keep=keep)
    info, full = result.info, whole().info
    walks.assert_equal(info.status, full.status)  # always
    walks.assert_equal(info.bytes_up, full.bytes_up)
    walks.assert_equal(info.cohort.loss, full.cohort.loss)
    walks.assert_equal(info.server, full.server)
    assert len(jax.tree.leaves(info)) == 4
    walks.assert_equal(result.state, whole().state)
    assert result.client_steps == whole().client_steps == 7 * 7


@pytest.mark.parametrize("keep", ["nothing", ()])
@pytest.mark.parametrize("debug", [False, True])
def test_nothing_but_the_status(keep: object, debug: bool) -> None:
    result = walks.run(num_rounds=3, keep=keep, debug=debug)
    (status,) = jax.tree.leaves(result.info)
    assert status.shape == (3,)
    assert result.client_steps == 3 * 7


def test_what_was_not_kept_says_so_whatever_one_does_with_it() -> None:
    missing = walks.run(num_rounds=1, keep=()).info.cohort.num_bytes
    assert isinstance(missing, NotKept)
    said = r"cohort\.num_bytes was not kept: name it in run\(keep=\.\.\.\)"
    for use in (np.asarray, np.sum, len, list, bool, lambda x: x[0], lambda x: x > 0):
        with pytest.raises(ValueError, match=said):
            use(missing)
    for use in (lambda x: x.sum(), lambda x: x.shape):
        with pytest.raises(AttributeError, match=said):
            use(missing)
    with pytest.raises(ValueError, match=said):
        1 + missing
    assert "not kept" in repr(missing)


def test_who_went_wrong_is_known_without_being_kept() -> None:
    with pytest.raises(simulate.SimulationError, match=r"in round 3, clients \[2\] sent"):
        walks.run(walks.walk(3), num_rounds=7, keep="nothing")


def test_a_sweep_keeps_what_is_named() -> None:
    hyper = {"seed": np.arange(3), "bad_round": np.full(3, -1)}
    result = simulate.sweep(
        walks.walk,
        hyper,
        functools.partial(jax.random.normal, shape=(3,)),
        walks.population(),
        num_rounds=4,
        keep=("cohort.ids",),
    )
    assert result.info.status.shape == (4, 3) and result.info.cohort.ids.shape == (4, 3, 2)
    assert isinstance(result.info.server["here"], NotKept)


def test_infos_of_another_kind() -> None:
    def step(key, state, data):
        return state + 1, {"seen": state, "twice": {"seen": 2 * state}}

    counting = Algorithm(lambda key, params, data: params, step, lambda state: state)
    result = walks.run(counting, num_rounds=3, keep=("twice.seen",))
    walks.assert_equal(
        result.info["twice"]["seen"], 2 * np.add.outer(np.arange(3.0), np.arange(3.0))
    )
    assert isinstance(result.info["seen"], NotKept)


@pytest.mark.parametrize(
    ("keep", "error", "message"),
    [
        (("cohort.los",), ValueError, r"'cohort\.los'.*Did you mean 'cohort\.loss'.*cohort\.ids"),
        ("cohort.loss", TypeError, r"a tuple of names such as \('cohort\.loss',\), got"),
        (("cohort.loss", 3), ValueError, "keep names 3, which"),
    ],
)
def test_wrong_names(keep: object, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        walks.run(num_rounds=1, keep=keep)


def test_a_checkpoint_has_what_is_kept(tmp_path) -> None:
    keep = ("server.here",)
    walks.run(num_rounds=3, keep=keep, checkpoint=tmp_path)
    result = walks.run(num_rounds=7, keep=keep, checkpoint=tmp_path)
    walks.assert_equal(result.info.server["here"], whole().info.server["here"])
    assert len(jax.tree.leaves(result.info)) == 2


def test_segments_are_shorter_where_rounds_show_a_lot() -> None:
    """4 bytes of every client stay on the device for the length of a segment, kept or not."""
    info = jax.eval_shape(walks.WALK.step, walks.KEY, (walks.START, np.int32(0)), None)[1]
    wide = info._replace(server={"here": jax.ShapeDtypeStruct((1 << 20,), np.float32)})
    assert longest_segment(info, 100, None) == 100
    assert longest_segment(wide, 100, None) == SEGMENT_BYTES // (4 << 20) - 1 == 3
    assert longest_segment(wide, 100, ("status",)) == 100
    wider = info._replace(server={"here": jax.ShapeDtypeStruct((1 << 24,), np.float32)})
    assert longest_segment(wider, 100, None) == 1
