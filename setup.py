"""Maps each root folder to its package: ``crypto/`` is imported as ``cipherward.crypto`` and so on."""

from setuptools import find_namespace_packages, setup

ROOTS = ("proto", "crypto", "coordinator", "site_agent", "evaluation")

packages = ["cipherward", *(f"cipherward.{name}" for name in find_namespace_packages("src/cipherward"))]
package_dir = {"cipherward": "src/cipherward"}
for root in ROOTS:
    package_dir[f"cipherward.{root}"] = root
    packages += [
        f"cipherward.{root}",
        *(f"cipherward.{root}.{name}" for name in find_namespace_packages(root)),
    ]

setup(
    packages=packages,
    package_dir=package_dir,
    include_package_data=False,
    package_data={
        "": [
            "py.typed",
            "*.proto",
            "*.pyi",
            "*.csv",
            "*.toml",
            "*.html.j2",
            "*.mako",
            "*.service",
            "LICENSE*",
        ]
    },
)
