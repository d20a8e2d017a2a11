"""cloud-init, which takes new hardware for a new machine.

It would write the network's files anew, with DHCP on the first card, and give the machine
another name and other host keys. One file more tells it that this is the machine it knows.
Source: cloud-init's documentation, "First boot determination" and "Base configuration".
"""

from __future__ import annotations

from .network_text import Etc

DIRECTORY = "/etc/cloud/cloud.cfg.d"
OWN = f"{DIRECTORY}/99-rollpoint.cfg"
CONTENT = """\
# Rollpoint: this is the machine that it was, on other hardware.
manual_cache_clean: true
network: {config: disabled}
preserve_hostname: true
ssh_deletekeys: false
"""


def settle(etc: Etc) -> None:
    """Keep what cloud-init wrote once, if it is installed and not off."""
    tree = etc.tree
    if tree.exists("/etc/cloud/cloud.cfg") and not tree.exists("/etc/cloud/cloud-init.disabled"):
        etc.put(OWN, CONTENT, "cloud-init leaves network, name and host keys as they are")
