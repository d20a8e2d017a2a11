"""Ways into a guest's file systems: user-space ones in a sandbox, an appliance, this host's kernel.

Each way opens one volume and offers its files without ever following a link
(base.FileSystem). tree.GuestTree puts them together as the guest mounts them, and is
what everybody else works with.
"""
