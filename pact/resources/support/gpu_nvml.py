"""The program that speaks to NVML. It is run by ``gpu_ask`` in a process of its own, and imports nothing of pact.

NVML is other people's code in the kernel's neighbourhood: it may crash, hang, or hold a device open, and a library that
was loaded before the driver was upgraded does not work after that. In a process that ends after each question none of
this concerns the agent, no handle gets stale, and nothing stands in the way of unloading the driver.

A request comes as JSON on stdin, an answer goes as JSON to stdout. Every call is guarded by itself: drivers and cards
differ, so what one of them does not know is left out.
"""

import ctypes
import json
import sys
from collections.abc import Callable
from typing import Any

COMPUTE_MODES = ("default", "exclusive_thread", "prohibited", "exclusive_process")
#: The process structure has changed: symbol, and whether it has the instance's ids.
PROCESSES = (("_v3", True), ("_v2", True), ("", False))
PROCESSES_MAX = 4096
USES = (("compute", "nvmlDeviceGetComputeRunningProcesses"), ("graphics", "nvmlDeviceGetGraphicsRunningProcesses"))


class Short(ctypes.Structure):
    _fields_ = (("pid", ctypes.c_uint), ("memory", ctypes.c_ulonglong))


class Long(ctypes.Structure):
    _fields_ = (
        ("pid", ctypes.c_uint),
        ("memory", ctypes.c_ulonglong),
        ("instance", ctypes.c_uint),
        ("compute_instance", ctypes.c_uint),
    )


def text(value: Any) -> str:
    return value.decode("utf-8", "backslashreplace") if isinstance(value, bytes) else str(value)


def is_unknown(nvml: Any, error: Any) -> bool:
    """Whether this driver or card has no such thing."""
    unknown = (nvml.NVML_ERROR_NOT_SUPPORTED, nvml.NVML_ERROR_FUNCTION_NOT_FOUND, nvml.NVML_ERROR_NO_PERMISSION)
    return error.value in unknown


def looks(nvml: Any, handle: Any) -> dict[str, Callable[[], Any]]:
    """How each attribute is read."""

    def clocks() -> dict[str, int]:
        kinds = (("graphics", nvml.NVML_CLOCK_GRAPHICS), ("memory", nvml.NVML_CLOCK_MEM))
        return {name: int(nvml.nvmlDeviceGetApplicationsClock(handle, kind)) for name, kind in kinds}

    def compute_mode() -> str:
        mode = int(nvml.nvmlDeviceGetComputeMode(handle))
        return COMPUTE_MODES[mode] if 0 <= mode < len(COMPUTE_MODES) else str(mode)

    return {
        "persistence": lambda: bool(nvml.nvmlDeviceGetPersistenceMode(handle)),
        "power_limit_mw": lambda: int(nvml.nvmlDeviceGetPowerManagementLimit(handle)),
        "compute_mode": compute_mode,
        "application_clocks": clocks,
        "ecc": lambda: [bool(mode) for mode in nvml.nvmlDeviceGetEccMode(handle)],
        "mig": lambda: [bool(mode) for mode in nvml.nvmlDeviceGetMigMode(handle)],
    }


def look(nvml: Any, handle: Any, driver: str) -> dict[str, Any]:
    """The attributes of one GPU. Raises NVMLError if it is lost, or if something cannot be read that it has."""
    out: dict[str, Any] = {"driver": driver}
    now: dict[str, Any] = {}
    for name, read in looks(nvml, handle).items():
        try:
            value = read()
        except nvml.NVMLError as error:
            if not is_unknown(nvml, error):
                raise
            continue
        if isinstance(value, list):  # the present mode, and the one after the next reset
            now[name], value = value
        out[name] = value
    return {**out, "now": now} if now else out


def bus_id(nvml: Any, handle: Any) -> str:
    """``0000:3b:00.0``, as lspci writes it."""
    domain, bus, rest = text(nvml.nvmlDeviceGetPciInfo(handle).busId).lower().split(":")
    return f"{int(domain, 16):04x}:{bus}:{rest}"


def handle_of(nvml: Any, name: str) -> Any:
    domain, rest = name.split(":", 1)
    return nvml.nvmlDeviceGetHandleByPciBusId(f"{int(domain, 16):08X}:{rest.upper()}".encode())


def state(nvml: Any, error: Any) -> dict[str, str]:
    gone = {nvml.NVML_ERROR_NOT_FOUND: "gone", nvml.NVML_ERROR_GPU_IS_LOST: "lost"}
    reset = getattr(nvml, "NVML_ERROR_RESET_REQUIRED", None)
    if error.value in gone:
        return {"gone": gone[error.value]}
    return {"error": "it needs a reset" if error.value == reset else str(error)}


def answer_look(nvml: Any, request: dict[str, Any]) -> dict[str, Any]:
    driver = text(nvml.nvmlSystemGetDriverVersion())
    gpus: dict[str, Any] = {}
    for index in range(int(nvml.nvmlDeviceGetCount())):
        try:
            handle = nvml.nvmlDeviceGetHandleByIndex(index)
            name = bus_id(nvml, handle)
        except nvml.NVMLError:
            continue  # it is asked by its name below, if anybody wants to know
        try:
            gpus[name] = {"attrs": look(nvml, handle, driver), "index": index}
            gpus[name]["uuid"] = text(nvml.nvmlDeviceGetUUID(handle))
        except nvml.NVMLError as error:
            if "attrs" not in gpus.get(name, {}):
                gpus[name] = state(nvml, error)
    for name in request["names"]:
        if name not in gpus:
            try:
                gpus[name] = {"attrs": look(nvml, handle_of(nvml, name), driver)}
            except nvml.NVMLError as error:
                gpus[name] = state(nvml, error)
    return {"gpus": gpus}


def answer_users(nvml: Any, request: dict[str, Any]) -> dict[str, Any]:
    handle = handle_of(nvml, request["name"])
    found: dict[int, str] = {}
    for use, symbol in USES:
        for pid in processes(nvml, handle, symbol):
            found.setdefault(pid, use)
    return {"users": sorted(found.items())}


def processes(nvml: Any, handle: Any, symbol: str) -> list[int]:
    """Pids, by the newest form of the call that this driver has. Raises NVMLError."""
    for version, is_long in PROCESSES:
        form = Long if is_long else Short
        try:
            call = nvml._nvmlGetFunctionPointer(symbol + version)
        except nvml.NVMLError as error:
            if error.value != nvml.NVML_ERROR_FUNCTION_NOT_FOUND:
                raise
            continue
        count = ctypes.c_uint(64)
        while True:
            room = int(count.value)
            table = (form * room)()
            code = call(handle, ctypes.byref(count), table)
            if code == nvml.NVML_ERROR_INSUFFICIENT_SIZE and room < PROCESSES_MAX:
                count = ctypes.c_uint(min(PROCESSES_MAX, max(2 * room, int(count.value) + 16)))
                continue
            if code in (nvml.NVML_ERROR_NOT_SUPPORTED, nvml.NVML_ERROR_FUNCTION_NOT_FOUND):
                return []
            if code != nvml.NVML_SUCCESS:
                raise nvml.NVMLError(code)
            return [int(table[n].pid) for n in range(min(int(count.value), room))]
    return []


def answer_limits(nvml: Any, request: dict[str, Any]) -> dict[str, Any]:
    """The lowest and the highest power limit; nothing if the card does not say."""
    try:
        low, high = nvml.nvmlDeviceGetPowerManagementLimitConstraints(handle_of(nvml, request["name"]))
    except nvml.NVMLError:
        return {"limits": None}
    return {"limits": [int(low), int(high)]}


def answer_set(nvml: Any, request: dict[str, Any]) -> dict[str, Any]:
    """Set these attributes, in this order; the first failure ends it and is named."""
    handle, wanted = handle_of(nvml, request["name"]), request["set"]
    for name, value in wanted.items():
        try:
            set_one(nvml, handle, name, value)
        except nvml.NVMLError as error:
            return {"failed": f"{name}: {error}"}
    return {"failed": ""}


def set_one(nvml: Any, handle: Any, name: str, value: Any) -> None:
    if name == "persistence":
        nvml.nvmlDeviceSetPersistenceMode(handle, int(value))
    elif name == "power_limit_mw":
        nvml.nvmlDeviceSetPowerManagementLimit(handle, value)
    elif name == "compute_mode":
        nvml.nvmlDeviceSetComputeMode(handle, COMPUTE_MODES.index(value))
    elif name == "ecc":
        nvml.nvmlDeviceSetEccMode(handle, int(value))
    elif name == "mig":
        nvml.nvmlDeviceSetMigMode(handle, int(value))
    elif name == "application_clocks":
        nvml.nvmlDeviceSetApplicationsClocks(handle, value["memory"], value["graphics"])
    else:
        raise nvml.NVMLError(nvml.NVML_ERROR_INVALID_ARGUMENT)


ANSWERS = {"look": answer_look, "users": answer_users, "limits": answer_limits, "set": answer_set}


def main() -> None:
    sys.path[:] = json.loads(sys.argv[1])
    request = json.load(sys.stdin)
    try:
        ctypes.CDLL("libnvidia-ml.so.1")
    except OSError:
        print(json.dumps({"no_nvml": "there is no libnvidia-ml.so.1 here"}))
        return
    try:
        import pynvml as nvml
    except ImportError:
        print(json.dumps({"no_nvml": "the Python package nvidia-ml-py is not installed"}))
        return
    try:
        nvml.nvmlInit()
    except nvml.NVMLError as error:
        print(json.dumps({"error": str(error)}))
        return
    try:
        answer = ANSWERS[request["op"]](nvml, request)
    except nvml.NVMLError as error:
        answer = {"error": str(error)}
    print(json.dumps(answer))


if __name__ == "__main__":
    main()
