"""Writes what is in each image, a CycloneDX file each: Debian packages and Python distributions.

The arguments are the project's name and the images. What is written follows from the image alone:
written again, it is the same.
"""

import json
import subprocess
import sys
from collections import defaultdict
from collections.abc import Iterable
from datetime import datetime
from email.message import Message
from email.parser import HeaderParser
from pathlib import Path
from typing import Any
from uuid import NAMESPACE_URL, uuid5

from cyclonedx.contrib.license.factories import LicenseFactory
from cyclonedx.model import Property
from cyclonedx.model.bom import Bom, BomMetaData
from cyclonedx.model.component import Component, ComponentType, Pedigree
from cyclonedx.model.license import DisjunctiveLicense, License
from cyclonedx.output.json import JsonV1Dot6
from packageurl import PackageURL

BASES = ("debian:trixie-slim", "postgres:17-trixie")
OCI = "org.opencontainers.image."
# In the image: what Debian, the packages' copyright files and the installed distributions say.
LOOK = r"""
set -e
. /etc/os-release && printf '%s %s\f' "$ID" "$(cat /etc/debian_version)"
dpkg-query --show --showformat \
  '${Package}\t${Version}\t${Architecture}\t${source:Package}\t${source:Version}\n'
printf '\f'
grep --with-filename '^License:' /usr/share/doc/*/copyright || true
for metadata in /opt/venv/lib/python3*/site-packages/*.dist-info/METADATA; do
  [ -e "$metadata" ] || continue
  printf '\f'
  [ ! -e "${metadata%METADATA}direct_url.json" ] || echo 'Own: yes'
  sed '/^$/q' "$metadata"
done
"""

licences = LicenseFactory()


def docker(*command: str) -> str:
    """What a docker command prints."""
    return subprocess.run(
        ["docker", *command], check=True, stdout=subprocess.PIPE, text=True
    ).stdout


def inspect(image: str) -> dict[str, Any]:
    """What Docker says of an image; nothing of one that isn't there."""
    done = subprocess.run(["docker", "image", "inspect", image], capture_output=True, text=True)
    found: list[dict[str, Any]] = json.loads(done.stdout or "[]")
    return found[0] if found else {}


def base_of(image: str, facts: dict[str, Any]) -> Component | None:
    """The base image that an image was built on: its layers begin with that one's."""
    layers = facts["RootFS"]["Layers"]
    for name in reversed(BASES):
        base = inspect(name)
        below = base["RootFS"]["Layers"] if base else []
        if name != image and below and layers[: len(below)] == below:
            return container(name, base)
    return None


def container(image: str, facts: dict[str, Any], base: Component | None = None) -> Component:
    """An image as a component, with its id and what its labels say."""
    labels = facts["Config"]["Labels"] or {}
    said = {name: value for name, value in labels.items() if name.startswith((OCI, "stand-in"))}
    name, _, tag = image.rpartition(":")
    return Component(
        type=ComponentType.CONTAINER,
        name=name,
        version=labels.get(f"{OCI}version", tag),
        bom_ref=image,
        description=labels.get(f"{OCI}description"),
        licenses=known_licence(labels.get(f"{OCI}licenses", "")),
        properties=[
            Property(name=key, value=value)
            for key, value in {"docker:image-id": facts["Id"], **said}.items()
        ],
        pedigree=Pedigree(ancestors=[base]) if base else None,
    )


def debian(
    system: str, packages: Iterable[list[str]], copyrights: dict[str, set[str]]
) -> Iterable[Component]:
    """Debian's packages; licences by the names that Debian has for them."""
    distro = f"debian-{system.split('.')[0]}"
    for name, version, arch, source, source_version in packages:
        qualifiers = {"arch": arch, "distro": distro}
        if (source, source_version) != (name, version):
            qualifiers["upstream"] = f"{source}@{source_version}"
        purl = PackageURL("deb", "debian", name, version, qualifiers)
        yield Component(
            name=name,
            version=version,
            bom_ref=str(purl),
            purl=purl,
            licenses=[DisjunctiveLicense(name=licence) for licence in sorted(copyrights[name])],
        )


def python(distributions: Iterable[Message]) -> Iterable[Component]:
    """Python's distributions; what this project's own files made isn't PyPI's."""
    for metadata in distributions:
        name, version = str(metadata["Name"]), str(metadata["Version"])
        purl = PackageURL("generic" if metadata["Own"] else "pypi", None, name, version)
        yield Component(
            name=name,
            version=version,
            bom_ref=str(purl),
            purl=purl,
            description=metadata["Summary"],
            licenses=licences_of(metadata),
        )


def licences_of(metadata: Message) -> list[License]:
    """What a distribution says of its licence: an SPDX expression, a name, or classifiers."""
    said = str(metadata["License-Expression"] or metadata["License"] or "")
    if said and "\n" not in said and len(said) < 100:
        return known_licence(said)
    classifiers = [str(value) for value in metadata.get_all("Classifier") or []]
    names = {value.split(" :: ")[-1] for value in classifiers if value.startswith("License :: ")}
    return [DisjunctiveLicense(name=name) for name in sorted(names - {"OSI Approved"})]


def known_licence(said: str) -> list[License]:
    """A licence by its SPDX id where it is one; none where nothing is said."""
    return [licences.make_from_string(said)] if said else []


def bill(image: str) -> Bom:
    """All that is in an image."""
    facts = inspect(image)
    command = ["run", "--rm", "--network=none", "--read-only", "--cap-drop=ALL"]
    said = docker(*command, "--entrypoint=sh", facts["Id"], "-c", LOOK).split("\f")
    (name, version), packages, copyrights = said[0].split(), said[1], said[2]
    by_package: dict[str, set[str]] = defaultdict(set)
    for line in copyrights.splitlines():
        path, _, licence = line.split(":", 2)
        if licence.strip():
            by_package[Path(path).parent.name].add(licence.strip())
    parse = HeaderParser().parsestr
    components = [
        Component(type=ComponentType.OPERATING_SYSTEM, name=name, version=version, bom_ref=name),
        *debian(version, [line.split("\t") for line in packages.splitlines()], by_package),
        *python(parse(text) for text in said[3:]),
    ]
    whole = container(image, facts, base_of(image, facts))
    found = Bom(
        serial_number=uuid5(NAMESPACE_URL, facts["Id"]),
        metadata=BomMetaData(component=whole, timestamp=datetime.fromisoformat(facts["Created"])),
        components=components,
    )
    found.register_dependency(whole, components)
    return found


def main() -> None:
    """Writes a file for each image."""
    project, *images = sys.argv[1:]
    for image in images:
        name = image.removeprefix(f"{project}-").split(":")[0].replace("/", "-")
        path = Path("sbom") / f"{name}.cdx.json"
        found = bill(image)
        beside = path.with_suffix(".new")
        beside.write_text(JsonV1Dot6(found).output_as_string(indent=2) + "\n")
        beside.rename(path)
        print(f"  ok    {path}: {len(found.components)} components of {image}")


if __name__ == "__main__":
    main()
