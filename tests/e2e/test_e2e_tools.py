"""Tools that change nodes by themselves, as Debian ships them: each run is one change, what is identical is no drift,
and what one rewrites for ever is contended with its name.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest
from harness import TOP, Agent, World, wait_until

ONE, TWO = f"{TOP}/etc/one.conf", f"{TOP}/etc/two.conf"


def puppet(world: World, content: str) -> list[str]:
    resources = "".join(f"file {{ '{p}': content => \"{content}\\n\", mode => '0644' }}\n" for p in (ONE, TWO))
    world.path(f"{TOP}/site.pp").write_text(resources)
    return ["puppet", "apply", f"--confdir={TOP}/puppet", f"--vardir={TOP}/puppet", f"{TOP}/site.pp"]


def cfengine(world: World, content: str) -> list[str]:
    promises = "".join(f'"{p}" content => "{content}\n", perms => m("0644");\n' for p in (ONE, TWO))
    world.path(f"{TOP}/site.cf").write_text(
        f'body perms m(mode) {{ mode => "$(mode)"; }}\nbundle agent main {{ files:\n{promises}}}\n'
    )
    world.path(f"{TOP}/site.cf").chmod(0o600)
    world.sh("mountpoint -q /var/lib/cfengine3 || mount -t tmpfs tmpfs /var/lib/cfengine3")
    return ["cf-agent", "-K", "-b", "main", "-f", f"{TOP}/site.cf"]


def ansible(world: World, content: str) -> list[str]:
    tasks = "".join(f'    - copy: {{content: "{content}\\n", dest: {p}, mode: "0644"}}\n' for p in (ONE, TWO))
    world.path(f"{TOP}/site.yml").write_text(f"- hosts: all\n  gather_facts: false\n  tasks:\n{tasks}")
    home = ["env", f"HOME={TOP}", f"ANSIBLE_LOCAL_TEMP={TOP}/tmp", f"ANSIBLE_REMOTE_TEMP={TOP}/tmp"]
    return [*home, "ansible-playbook", "-c", "local", "-i", "localhost,", f"{TOP}/site.yml"]


def dpkg(world: World, content: str) -> list[str]:
    """A package that is built on the spot, into a root of its own."""
    world.sh(
        f"rm -rf {TOP}/build; mkdir -p {TOP}/build/DEBIAN {TOP}/build/etc {TOP}/var/lib/dpkg/info {TOP}/var/lib/dpkg/updates;"
        f"touch {TOP}/var/lib/dpkg/status; chmod 755 {TOP}/build/DEBIAN;"
        f"echo {content} | tee {TOP}/build/etc/one.conf > {TOP}/build/etc/two.conf;"
        f"printf 'Package: site\\nVersion: {len(content)}\\nArchitecture: all\\nMaintainer: us <a@b.c>\\nDescription: x\\n'"
        f" > {TOP}/build/DEBIAN/control; dpkg-deb --build {TOP}/build {TOP}/site.deb"
    )
    return ["dpkg", f"--root={TOP}", "--force-not-root", "--force-script-chrootless", "-i", f"{TOP}/site.deb"]


TOOLS: dict[str, Callable[[World, str], list[str]]] = {
    "puppet": puppet,
    "cf-agent": cfengine,
    "ansible-playbook": ansible,
    "dpkg": dpkg,
}


@pytest.fixture(params=[pytest.param(name, marks=pytest.mark.needs(name)) for name in TOOLS])
def tool(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def agent(another: Callable[..., Agent], world: World) -> Iterator[Agent]:
    world.sh(f"mkdir -p {TOP}/etc")
    agent = another(window={"base": "30m", "floor": "0.2s"})
    agent.file("etc/one.conf", "as the site wants it\n")
    agent.file("etc/two.conf", "as the site wants it\n")
    yield agent
    world.sh(f"rm -rf {TOP}/etc {TOP}/var {TOP}/build")


@pytest.mark.invariant("O5")
def test_a_run_is_one_change_with_the_tool_s_name_and_nothing_new_is_no_drift(agent: Agent, tool: str) -> None:
    mine = agent.file("etc/mine.conf")
    agent.drift(mine)
    if tool != "dpkg":  # it replaces what it installs even so, and is compared by content all the same
        agent.world.call(TOOLS[tool](agent.world, "as the site wants it"))
        assert [c["resources"] for c in agent.status()["changes"]] == [[f"file:{mine}"]]
    agent.world.call(TOOLS[tool](agent.world, "what the tool wants"))
    change = wait_until(
        lambda: c if (c := agent.change_of(f"file:{TWO}")) and len(c["resources"]) == 2 else None, "the run's change"
    )
    assert change["resources"] == [f"file:{ONE}", f"file:{TWO}"]
    assert (change["owner"]["user"], change["owner"]["run"]) == ("root", tool)
    assert agent.change_of(f"file:{mine}")["id"] != change["id"]
    agent.pact("rollback", change["id"])
    assert agent.world.path(ONE).read_text() == "as the site wants it\n"


@pytest.mark.invariant("O5", "R3")
def test_what_a_tool_rewrites_for_ever_is_contended_with_its_name(another: Callable[..., Agent], tool: str) -> None:
    agent = another(window={"base": "0.5s", "floor": "0.2s"})
    agent.world.sh(f"mkdir -p {TOP}/etc")
    agent.file("etc/one.conf", "as the site wants it\n")
    for n in range(3):
        agent.world.call(TOOLS[tool](agent.world, "what the tool wants"))
        wait_until(lambda n=n: len(agent.records("rolled_back")) > n or agent.newest("rollback_blocked"), "an end")
    assert f"contended by root with {tool}" in agent.newest("rollback_blocked")["data"]["reason"]
    agent.world.sh(f"rm -rf {TOP}/etc {TOP}/var {TOP}/build")
