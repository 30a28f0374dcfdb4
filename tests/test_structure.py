"""What DESIGN promises of the whole: who may import whom, that every option is explained, that the README is true."""

import ast
import re
import sys
from collections.abc import Iterator
from dataclasses import MISSING, fields, is_dataclass
from pathlib import Path

import pytest

from deploy.local.config import ROOTS, LocalRoot
from deploy.options import insert

ROOT = Path(__file__).parents[1]
PACKAGES = ("protocol", "learner", "actors", "verifier", "deploy")
ROLES = {"learner", "actors", "verifier"}
HEAVY = {"torch", "vllm", "transformers"}
PROTOCOL_NEEDS = {"msgpack", "numpy", "xxhash", "zmq", "zstandard", "protocol"}
TORCH_TOO = {"protocol/collective.py": {"torch"}}
CONFIG_MODULES = {
    "actors.config",
    "learner.broker.config",
    "learner.checkpoint.config",
    "learner.config",
    "learner.sft.config",
    "verifier.config",
}
MODULES = sorted(path for package in PACKAGES for path in (ROOT / package).rglob("*.py"))


def imports(path: Path) -> Iterator[str]:
    """Every module that a file imports, anywhere in it; `from a import b` counts as a and as a.b."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import; name the package"
            assert node.module is not None
            yield node.module
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def tops(path: Path) -> set[str]:
    """The packages that a file imports from."""
    return {name.partition(".")[0] for name in imports(path)}


def named(path: Path) -> str:
    """The path as it reads from the repository's root."""
    return str(path.relative_to(ROOT))


def of(package: str) -> list[Path]:
    """The modules of a package."""
    return [path for path in MODULES if path.relative_to(ROOT).parts[0] == package]


def test_the_rules_below_see_the_code() -> None:
    assert {path.relative_to(ROOT).parts[0] for path in MODULES} == set(PACKAGES)


@pytest.mark.parametrize("path", of("protocol"), ids=named)
def test_protocol_needs_the_standard_library_and_small_packages_only(path: Path) -> None:
    allowed = PROTOCOL_NEEDS | TORCH_TOO.get(named(path), set())
    assert tops(path) - set(sys.stdlib_module_names) <= allowed


def test_only_those_who_have_torch_anyhow_need_what_needs_it() -> None:
    torches = {name.removesuffix(".py").replace("/", ".") for name in TORCH_TOO}
    users = {named(path) for path in MODULES if torches & set(imports(path))}
    assert users == {"actors/weights/together.py", "learner/publish/group.py"}


@pytest.mark.parametrize("role", sorted(ROLES))
def test_roles_never_import_each_other_nor_deploy(role: str) -> None:
    forbidden = (ROLES - {role}) | {"deploy", "tests"}
    assert {named(path): found for path in of(role) if (found := tops(path) & forbidden)} == {}


def test_deploy_imports_nothing_of_the_roles_but_their_config_schemas() -> None:
    strangers = {}
    for path in of("deploy"):
        taken = {name for name in imports(path) if name.partition(".")[0] in ROLES}
        outside = {name for name in taken if not any(f"{name}.".startswith(f"{module}.") for module in CONFIG_MODULES)}
        packages = {module.rpartition(".")[0] for module in CONFIG_MODULES}
        if left := outside - packages:
            strangers[named(path)] = left
    assert strangers == {}


def test_only_the_engine_imports_vllm() -> None:
    assert [named(path) for path in MODULES if "vllm" in tops(path)] == ["actors/engine.py"]


def test_config_schemas_import_nothing_heavy() -> None:
    """Nor does anything that they import."""
    for module in CONFIG_MODULES:
        ahead, seen = [module], set()
        while ahead:
            path = ROOT / f"{ahead.pop().replace('.', '/')}.py"
            if not path.exists() or path in seen:
                continue
            seen.add(path)
            assert not tops(path) & HEAVY, named(path)
            ahead += [name for name in imports(path) if name.partition(".")[0] in PACKAGES]


@pytest.mark.parametrize("root", [*ROOTS.values(), LocalRoot], ids=lambda root: root.__name__)
def test_every_option_says_what_it_means(root: type) -> None:
    for each in fields(root):
        section = each.default_factory() if each.default_factory is not MISSING else None
        if is_dataclass(section):
            assert (type(section).__doc__ or "").strip()
            silent = [option.name for option in fields(section) if not option.metadata.get("doc")]
            assert silent == [], each.name
        else:
            assert each.metadata.get("doc"), each.name


def test_the_readmes_option_tables_are_current() -> None:
    readme = (ROOT / "README.md").read_text()
    assert readme == insert(readme), "run `make options`"


def test_every_path_on_the_readmes_map_exists_and_every_package_is_on_it() -> None:
    readme = (ROOT / "README.md").read_text()
    found = re.search(r"<!-- map -->\n```\n(.*?)```\n<!-- end of map -->", readme, re.DOTALL)
    assert found, "the map stands between <!-- map --> and <!-- end of map -->"
    paths: list[str] = []
    folders: list[str] = []
    for line in found[1].splitlines():
        depth = (len(line) - len(line.lstrip())) // 2
        folders[depth:] = [line.split()[0]]
        paths.append("".join(folders))
    assert [path for path in paths if not (ROOT / path).exists()] == []
    assert {f"{package}/" for package in PACKAGES} <= set(paths)


def test_make_targets_that_the_readme_names_exist() -> None:
    targets = set(re.findall(r"^([a-z]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    assert set(re.findall(r"`make ([a-z]+)", (ROOT / "README.md").read_text())) <= targets
