"""What dnf's own Python runs for pact.

dnf has no command that does several things in one transaction, or that says in a form for programs what it would do.
The text is given to the interpreter that dnf itself runs with, which may be old (3.6). It reads one JSON document and
prints one: ``coming`` and ``going`` (names), ``missing`` (by name), ``available`` (by name), ``error``, ``stage``.
"""

from __future__ import annotations

from typing import Final

SCRIPT: Final = r"""
import json, os, sys
said = os.fdopen(os.dup(1), "w")
os.dup2(2, 1)
wanted = json.load(sys.stdin)
out = {"coming": [], "going": [], "missing": {}, "available": {}, "error": ""}
ARCHLESS = ("noarch", wanted["native"])

def split(name):
    left, dot, arch = name.rpartition(".")
    return (left, (arch,)) if dot and arch in wanted["arches"] else (name, ARCHLESS)

def named(pkg):
    return pkg.name if pkg.arch in ARCHLESS else pkg.name + "." + pkg.arch

def version(pkg):
    evr = pkg.version + "-" + pkg.release
    return evr if pkg.epoch in (0, "0") else "%s:%s" % (pkg.epoch, evr)

def same(declared, actual):
    epoch, _, rest = declared.rpartition(":")
    other, _, actual = actual.rpartition(":")
    if epoch and epoch.strip("0") != other.strip("0"):
        return False
    return declared == "*" or rest == actual or ("-" not in rest and actual.rpartition("-")[0] == rest)

def prepared(dnf):
    base = dnf.Base()
    conf = base.conf
    release = dnf.rpm.detect_releasever(wanted["root"] or "/")
    conf.substitutions["releasever"] = release or ""
    conf.substitutions.update_from_etc(wanted["root"] or "/")
    if wanted["root"]:
        conf.config_file_path = wanted["root"] + "/etc/dnf/dnf.conf"
    conf.read()
    if wanted["root"]:
        conf.installroot = wanted["root"]
        conf.reposdir = [wanted["root"] + "/etc/yum.repos.d"]
        for option in ("cachedir", "logdir", "persistdir"):
            conf.prepend_installroot(option)
    conf.assumeyes = True
    conf.install_weak_deps = False
    conf.clean_requirements_on_remove = False
    conf.best = False
    conf.cacheonly = bool(wanted["cached"])
    conf.skip_if_unavailable = bool(wanted["cached"])
    conf.timeout = 30
    conf.retries = 2
    base.init_plugins()
    base.pre_configure_plugins()
    base.read_all_repos()
    base.configure_plugins()
    base.fill_sack(load_system_repo=True)
    return base

def offered(base, name):
    left, arches = split(name)
    return sorted(base.sack.query().available().filterm(name=left, arch=list(arches)), reverse=True)

def plan(base):
    for move in wanted["moves"]:
        left, arches = split(move["name"])
        here = sorted(base.sack.query().installed().filterm(name=left, arch=list(arches)))
        if move["version"] is None:
            for pkg in here:
                base.package_remove(pkg)
            continue
        found = [pkg for pkg in offered(base, move["name"]) if same(move["version"], version(pkg))]
        if not found:
            out["missing"][move["name"]] = "%s cannot be had: no enabled repository has it" % move["version"]
        elif not here:
            base.package_install(found[0])
        elif found[0] > here[-1]:
            base.package_upgrade(found[0])
        elif found[0] < here[-1]:
            base.package_downgrade(found[0])
    if out["missing"]:
        return False
    base.resolve(allow_erasing=True)
    out["coming"] = sorted({named(pkg) for pkg in base.transaction.install_set})
    replaced = {named(pkg) for pkg in base.transaction.install_set}
    out["going"] = sorted({named(pkg) for pkg in base.transaction.remove_set} - replaced)
    return True

def main():
    import dnf
    import dnf.rpm
    base = prepared(dnf)
    try:
        for name in wanted["ask"]:
            out["available"][name] = [version(pkg) for pkg in offered(base, name)]
        if wanted["moves"] and plan(base) and wanted["act"]:
            planned = set(wanted["planned"])
            beyond = (set(out["coming"]) | set(out["going"])) - planned
            if beyond:
                out["error"] = "beyond the plan: " + ", ".join(sorted(beyond)[:8])
                return
            out["stage"] = "download"
            base.download_packages(list(base.transaction.install_set))
            for pkg in base.transaction.install_set:
                code, text = base.package_signature_check(pkg)
                if code:
                    unknown = "rpm does not know the key of %s: a person decides whether to trust it" % pkg
                    raise dnf.exceptions.Error(unknown if code == 1 else text)
            out["stage"] = "transaction"
            base.do_transaction()
            out["stage"] = "done"
    finally:
        base.close()

out["stage"] = "question"
try:
    main()
except Exception as exc:
    out["error"] = " ".join(str(exc).split())[:600] or type(exc).__name__
json.dump(out, said)
said.flush()
"""
