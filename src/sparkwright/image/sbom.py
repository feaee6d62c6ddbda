"""The bill of materials of a built image, in CycloneDX: its Python packages and its system packages."""

from collections.abc import Iterable
from datetime import datetime
from pathlib import Path
from typing import Any
from uuid import NAMESPACE_URL, uuid5

from sparkwright.errors import UnavailableError
from sparkwright.files import write_atomic
from sparkwright.image.installed import Installed
from sparkwright.image.inventory import Inventory, load_inventory
from sparkwright.image.preflight import SPARK_PLATFORM
from sparkwright.image.record import ImageRecord, sbom_path
from sparkwright.image.wheels import licence_of


def write_sbom(record: ImageRecord, python: Iterable[Installed], system: Iterable[list[str]]) -> Path:
    """Write down what is installed in an image beside its record.

    Raises:
        UnavailableError: the library for it is not installed.
    """
    path = sbom_path(record.line, record.tag)
    # The stored list is of aarch64 wheels, so only an image for that machine has their hashes.
    inventory = load_inventory(record.line) if record.platform == SPARK_PLATFORM else None
    write_atomic(path, bill_of_materials(record, python, system, inventory))
    return path


def bill_of_materials(
    record: ImageRecord,
    python: Iterable[Installed],
    system: Iterable[list[str]],
    inventory: Inventory | None = None,
) -> str:
    """The bill as JSON: the same for the same image, byte for byte."""
    try:
        from cyclonedx.contrib.license.factories import LicenseFactory
        from cyclonedx.model import HashAlgorithm, HashType
        from cyclonedx.model.bom import Bom, BomMetaData
        from cyclonedx.model.component import Component, ComponentType
        from cyclonedx.output.json import JsonV1Dot6
        from packageurl import PackageURL
    except ImportError as error:
        raise UnavailableError(
            "the library that writes bills of materials is not installed",
            cause="this environment was not made from requirements/dev.txt",
            remedy="use ./build.sh, which makes it",
        ) from error
    hashes = {(one.project, one.version): one.sha256 for one in inventory.entries} if inventory else {}
    licences = LicenseFactory()

    def component(kind: ComponentType, name: str, version: str, url: PackageURL, **more: Any) -> Component:  # noqa: ANN401
        return Component(type=kind, name=name, version=version, purl=url, bom_ref=str(url), **more)

    image = component(
        ComponentType.CONTAINER,
        "sparkwright",
        record.tag.rpartition(":")[2],
        PackageURL("oci", None, "sparkwright", record.image_id),
    )
    found = []
    for name, version, metadata, _ in sorted(python):
        project = name.lower().replace("_", "-").replace(".", "-")
        digest = hashes.get((project, version))
        found.append(
            component(
                ComponentType.LIBRARY,
                name,
                version,
                PackageURL("pypi", None, project, version),
                licenses=[licences.make_from_string(licence_of(metadata))] if metadata else [],
                hashes=[HashType(alg=HashAlgorithm.SHA_256, content=digest)] if digest else [],
            )
        )
    for package, version, architecture in sorted(system):
        url = PackageURL("deb", "ubuntu", package, version, {"arch": architecture})
        found.append(component(ComponentType.LIBRARY, package, version, url))
    bill = Bom(
        components=found,
        serial_number=uuid5(NAMESPACE_URL, record.image_id),
        metadata=BomMetaData(component=image, timestamp=datetime.fromisoformat(record.created)),
    )
    bill.register_dependency(image, found)
    return JsonV1Dot6(bill).output_as_string(indent=1) + "\n"
