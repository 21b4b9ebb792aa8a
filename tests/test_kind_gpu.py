"""GPUs against a library of our own that speaks NVML's calls: errors, lost devices, older drivers, hangs and crashes."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from nvml_kit import FIRST, SECOND, Nvml

from pact.core.plan import Step
from pact.errors import RestoreError
from pact.model import NS_PER_S, Attrs, Observation, Unreadable
from pact.resources.base import HALF_N, WHOLE_N, Keep
from pact.resources.kinds.gpu import KIND, Hotplug
from pact.resources.support import gpu_ask

pytestmark = pytest.mark.needs("gcc")
WHOLE = {
    "driver": "550.54.15",
    "persistence": True,
    "power_limit_mw": 300000,
    "compute_mode": "default",
    "application_clocks": {"graphics": 1410, "memory": 1215},
    "ecc": True,
    "mig": False,
    "now": {"ecc": True, "mig": False},
}


@pytest.fixture(autouse=True)
def forget() -> Iterator[None]:
    gpu_ask.forget()
    yield
    gpu_ask.forget()


@pytest.fixture
def nvml(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Nvml:
    made = Nvml(tmp_path / "nvml")
    monkeypatch.setenv("LD_LIBRARY_PATH", str(made.place))
    return made


def look(name: str = FIRST) -> Observation:
    return KIND.observe(name, Keep(0))


def seen(name: str = FIRST) -> Attrs:
    found = look(name)
    assert isinstance(found, dict), found
    return found


def why(name: str = FIRST) -> str:
    found = look(name)
    assert isinstance(found, Unreadable), found
    return found.why


# -- names and TOML -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["0000:3b:00.0", "3b:00.0", "00000000:3B:00.0", "0000:3B:00.0"])
def test_a_gpu_is_named_by_its_place_as_lspci_writes_it(name: str) -> None:
    assert KIND.canonical(name) == FIRST


@pytest.mark.parametrize("name", ["", "0", "GPU-1234", "3b:00", "0000:3b:00.8", "x:3b:00.0", "0000:3b:00.0\n", "../x"])
def test_what_is_no_place_is_refused(name: str) -> None:
    with pytest.raises(ValueError, match="no place on the PCI bus"):
        KIND.canonical(name)


@pytest.mark.parametrize(
    "value",
    [
        "present",
        {"persistence": True},
        {"power_limit_mw": 250000, "ecc": False, "mig": True, "compute_mode": "exclusive_process"},
        {"application_clocks": {"graphics": 1410, "memory": 1215}, "driver": "550.54.15", "weight": 3.0},
    ],
)
def test_an_exported_gpu_is_read_back_to_the_same(value: Any) -> None:
    declared = KIND.parse(FIRST, value, "/").declared
    assert KIND.parse(FIRST, KIND.export(FIRST, declared, lambda _: None), "/").declared == declared


@pytest.mark.parametrize(
    ("value", "what"),
    [
        ("absent", "a table"),
        ({"persistence": 1}, "true or false"),
        ({"power_limit_mw": 1.5}, "a whole number"),
        ({"power_limit_mw": True}, "a whole number"),
        ({"power_limit_mw": 0}, "a whole number"),
        ({"compute_mode": "fast"}, "compute_mode is one of"),
        ({"application_clocks": {"graphics": 1}}, "with graphics and memory"),
        ({"driver": "x\n"}, "driver is its version"),
        ({"persistense": True}, "did you mean 'persistence'"),
    ],
)
def test_what_a_gpu_cannot_be_is_refused(value: Any, what: str) -> None:
    with pytest.raises(ValueError, match=what):
        KIND.parse(FIRST, value, "/")


# -- looking --------------------------------------------------------------------------------------------------------


def test_it_is_read_whole(nvml: Nvml) -> None:
    assert seen() == WHOLE
    assert look("0000:01:00.0") is None


@pytest.mark.parametrize(
    ("key", "attribute"),
    [
        ("persistence", "persistence"),
        ("power", "power_limit_mw"),
        ("compute__mode", "compute_mode"),
        ("graphics", "application_clocks"),
        ("ecc", "ecc"),
        ("mig", "mig"),
    ],
)
@pytest.mark.parametrize("code", [3, 13])
def test_what_a_card_or_driver_does_not_know_is_left_out(nvml: Nvml, key: str, attribute: str, code: int) -> None:
    nvml.values[f"gpu0.{key.replace('__', '_')}.error"] = code
    nvml.write()
    assert {k: v for k, v in seen().items() if k != "now"} == {
        k: v for k, v in WHOLE.items() if k not in (attribute, "now")
    }


def test_a_card_without_ecc_and_a_driver_without_mig(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    older = Nvml(tmp_path / "older", "-DNO_MIG", "-DNO_V3", "-DNO_V2")
    older.set(gpu0_ecc_now=None, gpu0_compute="7,8")
    monkeypatch.setenv("LD_LIBRARY_PATH", str(older.place))
    found = seen()
    assert "ecc" not in found and "mig" not in found and "now" not in found and found["persistence"] is True
    assert [h.pid for h in KIND.holders(FIRST, Step("gpu:x", {}, {}), "gpu:x")] == [7, 8]


@pytest.mark.invariant("F73")
@pytest.mark.parametrize(("code", "how"), [(15, "has lost its connection to the bus"), (6, "is not there")])
def test_a_lost_gpu_is_absent_and_no_rollback_tries_to_mend_it(nvml: Nvml, code: int, how: str) -> None:
    nvml.set(**{"gpu0_handle__error" if code == 6 else "gpu0_error": code})
    assert look() is None
    assert seen(SECOND) == WHOLE, "the other one is there"
    step = Step(f"gpu:{FIRST}", {"persistence": True}, None)
    said = KIND.preflight(FIRST, step, Keep(0)).refusal
    assert how in said and "no rollback can mend that" in said
    with pytest.raises(RestoreError, match="no rollback can mend that"):
        KIND.restore(FIRST, step, lambda _: None)
    assert KIND.in_use(FIRST, step) is False
    nvml.set(gpu0_error=None, gpu0_handle__error=None)
    assert seen() == WHOLE


@pytest.mark.invariant("F73")
@pytest.mark.parametrize("code", [9, 18, 999])
def test_a_driver_that_is_gone_or_another_makes_it_unreadable_and_never_absent(nvml: Nvml, code: int) -> None:
    """Not loaded; another version than the library; unknown."""
    nvml.set(init_error=code)
    assert "NVML: " in why()
    nvml.set(init_error=None, driver="560.1")
    assert seen()["driver"] == "560.1", "it works again as soon as the driver does"


@pytest.mark.invariant("F73")
def test_an_error_of_one_call_makes_it_unreadable(nvml: Nvml) -> None:
    nvml.set(gpu0_power__error=999)
    assert "NVML" in why()
    assert seen(SECOND) == WHOLE


def test_without_nvml_nothing_is_found_and_nothing_is_broken(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("LD_LIBRARY_PATH", str(tmp_path))
    (tmp_path / "libnvidia-ml.so.1").write_bytes(b"no library")
    assert "no NVML" in why()
    found = KIND.discover("**")
    assert not list(found.names) and "no NVML" in str(found.passed)


@pytest.mark.invariant("F73")
def test_a_crash_of_nvml_ends_its_own_process_only(nvml: Nvml) -> None:
    nvml.set(crash=1)
    assert "ended its process with signal 6" in why()


@pytest.mark.invariant("F73")
def test_a_hang_of_nvml_is_killed_and_told(nvml: Nvml, monkeypatch: pytest.MonkeyPatch) -> None:
    nvml.set(hang=60)
    began = time.monotonic()
    with pytest.raises(gpu_ask.NoAnswer, match=r"does not answer within 0\.5 s"):
        gpu_ask.ask("look", 0.5, names=[])
    assert time.monotonic() - began < 10


def test_two_cards_cost_one_question_and_a_decision_asks_anew(nvml: Nvml) -> None:
    assert KIND.observe(FIRST) == WHOLE
    nvml.set(gpu1_persistence=0)
    assert KIND.observe(SECOND) == WHOLE, "seen a moment ago"
    assert seen(SECOND)["persistence"] is False


def test_nothing_of_nvml_is_loaded_here(nvml: Nvml) -> None:
    assert seen() == WHOLE
    assert str(nvml.place) not in Path("/proc/self/maps").read_text()


# -- comparing and setting ------------------------------------------------------------------------------------------


def test_only_what_is_declared_is_compared() -> None:
    assert KIND.distance_n({}, WHOLE) == 0
    assert KIND.distance_n({"persistence": True, "now": {"ecc": False}}, WHOLE) == 0
    assert KIND.distance_n({"persistence": False}, WHOLE) == HALF_N
    assert KIND.distance_n({"driver": "535.1"}, WHOLE) == WHOLE_N
    assert KIND.distance_n({"power_limit_mw": 1}, {}) == HALF_N
    assert KIND.distance_n({}, None) == WHOLE_N


def test_every_setting_is_brought_back(nvml: Nvml) -> None:
    nvml.set(gpu0_persistence=0, gpu0_power=200000, gpu0_compute_mode=3, gpu0_ecc=0, gpu0_mig=1, gpu0_graphics=900)
    step = Step(f"gpu:{FIRST}", WHOLE, seen())
    saved = KIND.preflight(FIRST, step, Keep(0))
    assert saved.refusal == "" and "may take a reset of the GPU" in saved.note
    for _ in range(2):
        KIND.restore(FIRST, step, lambda _: None)
        assert KIND.distance_n(WHOLE, seen()) == 0
    assert nvml.read()["gpu0.graphics"] == "1410"


@pytest.mark.parametrize(
    ("target", "what"),
    [
        ({"power_limit_mw": 900000}, "it takes a power limit of 100000 to 400000 mW, and not 900000"),
        ({"driver": "535.1"}, "its driver is 550.54.15, and not 535.1: a person must mend it"),
        ({"mig": True}, ""),
    ],
)
def test_what_cannot_be_set_is_refused_before_anything_is_touched(nvml: Nvml, target: Attrs, what: str) -> None:
    said = KIND.preflight(FIRST, Step(f"gpu:{FIRST}", target, seen()), Keep(0)).refusal
    assert what in said and bool(what) == bool(said)


def test_what_the_card_has_not_is_refused(nvml: Nvml) -> None:
    nvml.set(gpu0_mig__error=3)
    said = KIND.preflight(FIRST, Step(f"gpu:{FIRST}", {"mig": True}, seen()), Keep(0)).refusal
    assert "this card or driver has no mig" in said


def test_a_setting_that_fails_is_named_with_nvmls_reason(nvml: Nvml) -> None:
    nvml.values["gpu0.set.power.error"] = 4
    nvml.write()
    with pytest.raises(RestoreError, match="power_limit_mw: "):
        KIND.restore(FIRST, Step(f"gpu:{FIRST}", {"power_limit_mw": 200000}, seen()), lambda _: None)
    nvml.set(init_error=9)
    with pytest.raises(RestoreError, match="NVML"):
        KIND.restore(FIRST, Step(f"gpu:{FIRST}", {"power_limit_mw": 200000}, WHOLE), lambda _: None)


# -- who uses it ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("flags", [(), ("-DNO_V3",), ("-DNO_V3", "-DNO_V2")])
def test_processes_are_named_whatever_form_the_driver_speaks(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, flags: tuple[str, ...]
) -> None:
    nvml = Nvml(tmp_path / "forms", *flags)
    monkeypatch.setenv("LD_LIBRARY_PATH", str(nvml.place))
    nvml.set(gpu0_compute="11,12", gpu0_graphics_users="12,13")
    held = KIND.holders(FIRST, Step("gpu:x", {}, {}), "gpu:x")
    assert [(h.pid, h.how) for h in held] == [(11, "compute"), (12, "compute"), (13, "graphics")]
    nvml.set(gpu0_compute=",".join(str(n) for n in range(1, 60)))
    gpu_ask.forget()
    assert len(KIND.holders(FIRST, Step("gpu:x", {}, {}), "gpu:x")) == 59
    assert KIND.holders(SECOND, Step("gpu:x", {}, {}), "gpu:x") == []


def test_if_nvml_cannot_say_who_uses_it_it_counts_as_in_use(nvml: Nvml) -> None:
    nvml.set(gpu0_compute__error=999)
    (held,) = KIND.holders(FIRST, Step("gpu:x", {}, {}), "gpu:x")
    assert (held.pid, held.how) == (0, "unknown") and "NVML" in held.path


@pytest.mark.invariant("S3")
def test_who_asks_again_and_again_starts_no_process_each_time_and_a_decision_asks_anew(nvml: Nvml) -> None:
    step = Step("gpu:x", {"mig": True}, WHOLE)
    nvml.set(gpu0_compute="11")
    assert [h.pid for h in KIND.holders(FIRST, step, "gpu:x")] == [11]
    nvml.set(gpu0_compute="12")
    assert [h.pid for h in KIND.holders(FIRST, step, "gpu:x")] == [11], "of a moment ago"
    assert KIND.in_use(FIRST, step) is None
    assert [h.pid for h in KIND.holders(FIRST, step, "gpu:x")] == [12]


def test_the_persistence_mode_disturbs_nobody() -> None:
    assert not KIND.disturbs(Step("gpu:x", {"persistence": False}, WHOLE))
    assert KIND.in_use(FIRST, Step("gpu:x", {"persistence": False}, WHOLE)) is False
    assert KIND.disturbs(Step("gpu:x", {"mig": True}, WHOLE))
    assert KIND.in_use(FIRST, Step("gpu:x", {"power_limit_mw": 1}, WHOLE)) is None


# -- adopt and events -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("pattern", "names"),
    [
        ("**", [FIRST, SECOND]),
        ("0000:3B:*", [FIRST]),
        ("1", [SECOND]),
        ("GPU-00000000-0000-0000-0000-000000000000", [FIRST]),
        ("00000000:3B:00.0", [FIRST]),
    ],
)
def test_a_gpu_is_adopted_by_pattern_index_uuid_or_place(nvml: Nvml, pattern: str, names: list[str]) -> None:
    assert list(KIND.discover(pattern).names) == names


@pytest.mark.parametrize("alias", ["7", "GPU-ffff"])
def test_an_index_or_uuid_that_no_card_has_is_told(nvml: Nvml, alias: str) -> None:
    with pytest.raises(ValueError, match="there is no such GPU here"):
        list(KIND.discover(alias).names)


def test_a_device_or_a_driver_that_comes_or_goes_is_looked_at() -> None:
    source = Hotplug()
    try:
        source.want(FIRST)

        class Said:
            def __init__(self, *devices: str) -> None:
                self.devices = devices

            def drain(self) -> tuple[list[tuple[str, str]], bool]:
                return [("remove", d) for d in self.devices], False

        real = source._uevents
        for device, names in (
            (f"/devices/pci0000:3a/0000:3a:00.0/{FIRST}", [FIRST]),
            ("/module/nvidia", [FIRST]),
            ("/module/nvidia_uvm", [FIRST]),
            (f"/devices/pci0000:ae/0000:ae:00.0/{SECOND}", []),
        ):
            source._uevents = Said(device)  # type: ignore[assignment]
            assert [n for n, _ in source.drain().changed] == names
        source._uevents = real
    finally:
        source.close()


def test_no_descriptor_and_no_process_is_left(nvml: Nvml) -> None:
    seen()
    before = len(os.listdir("/proc/self/fd"))
    for _ in range(5):
        seen()
    assert len(os.listdir("/proc/self/fd")) == before


def test_an_answer_that_was_under_way_when_a_setting_changed_is_not_remembered(
    nvml: Nvml, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(gpu_ask, "FRESH_NS", 60 * NS_PER_S)
    nvml.set(gpu0_power=200000, late=2)
    with ThreadPoolExecutor(1) as pool:
        old = pool.submit(gpu_ask.gpus)
        time.sleep(1)
        nvml.set(late=None)
        KIND.restore(FIRST, Step(f"gpu:{FIRST}", {"power_limit_mw": 300000}, {"power_limit_mw": 200000}), {})
        assert old.result()[FIRST]["attrs"]["power_limit_mw"] == 200000, "it was asked before"
    observed = KIND.observe(FIRST)
    assert isinstance(observed, dict) and observed["power_limit_mw"] == 300000


def test_who_used_the_card_before_a_decision_is_asked_again(nvml: Nvml) -> None:
    nvml.set(late=2)
    with ThreadPoolExecutor(1) as pool:
        old = pool.submit(gpu_ask.users, FIRST)
        time.sleep(1)
        nvml.set(late=None, gpu0_compute=os.getpid())
        gpu_ask.forget()
        assert old.result() == []
    assert [pid for pid, _ in gpu_ask.users(FIRST)] == [os.getpid()]
