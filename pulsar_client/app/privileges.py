"""Giving up the rights of root, for good, and making sure of it (P28)."""

import os
from dataclasses import dataclass

from pulsar_client.app.settings import Settings
from pulsar_client.exceptions import ConfigError

__all__ = ["Identity", "file_owner"]


@dataclass(frozen=True)
class Identity:
    """Who a worker shall be.

    Attributes:
        uid: the user, or None to stay who it is.
        gid: the primary group, or None to keep it.
        groups: all groups.
    """

    uid: int | None
    gid: int | None
    groups: tuple[int, ...]

    @classmethod
    def wanted(cls, settings: Settings) -> "Identity | None":
        """Look up what the settings ask for.

        Returns:
            None if they ask for nothing.

        Raises:
            ConfigError: there is no such user or group, or this process may not become it.
        """
        if settings.user is None and settings.group is None:
            return None
        uid: int | None = None
        gid: int | None = None
        groups: tuple[int, ...] = ()
        if settings.user is not None:
            uid, gid, groups = _user(settings.user)
        if settings.group is not None:
            gid = _group(settings.group, "group")
            groups = (gid,)
        wanted = cls(uid, gid, groups)
        if os.geteuid() != 0 and not wanted.is_present():
            who = f"user is {settings.user!r}, group is {settings.group!r}"
            raise ConfigError(f"{who}: only root can become somebody else")
        return wanted

    def is_present(self) -> bool:
        """Tell whether this process is that already."""
        return self.uid in (None, os.geteuid()) and self.gid in (None, os.getegid())

    def assume(self) -> None:
        """Become it: groups, then group, then user, since only root may do the first two.

        Raises:
            OSError: it was refused.
            RuntimeError: it was not refused, and not done.
        """
        if os.geteuid() != 0:
            return
        os.setgroups(self.groups)
        if self.gid is not None:
            os.setgid(self.gid)
        if self.uid is not None:
            os.setuid(self.uid)
        self._verify()

    def _verify(self) -> None:
        uids = {os.getuid(), os.geteuid()}
        gids = {os.getgid(), os.getegid()}
        if hasattr(os, "getresuid"):
            uids |= set(os.getresuid())
            gids |= set(os.getresgid())
        if self.uid is not None and uids != {self.uid}:
            raise RuntimeError(f"user ids are {sorted(uids)} instead of {self.uid}")
        if self.gid is not None and gids != {self.gid}:
            raise RuntimeError(f"group ids are {sorted(gids)} instead of {self.gid}")
        if not set(os.getgroups()) <= {*self.groups, self.gid}:
            raise RuntimeError(f"groups are {os.getgroups()} instead of {list(self.groups)}")
        if self.uid:
            try:
                os.setuid(0)
            except PermissionError:
                return
            raise RuntimeError("it could become root again")


def file_owner(text: str) -> tuple[int, int]:
    """Read ``USER``, ``USER:GROUP`` or ``:GROUP``; -1 stands for what stays as it is.

    Raises:
        ConfigError: there is no such user or group.
    """
    user, _, group = text.partition(":")
    uid = _user(user, "unix_owner")[0] if user else -1
    gid = _group(group, "unix_owner") if group else -1
    return uid, gid


def _user(name: str, setting: str = "user") -> tuple[int, int, tuple[int, ...]]:
    import pwd

    try:
        found = pwd.getpwuid(int(name)) if name.isdigit() else pwd.getpwnam(name)
    except KeyError:
        if name.isdigit():  # an id needs no name, in containers mostly
            return int(name), int(name), (int(name),)
        raise ConfigError(f"{setting} is {name!r}, and there is no such user") from None
    groups = tuple(os.getgrouplist(found.pw_name, found.pw_gid))
    return found.pw_uid, found.pw_gid, groups


def _group(name: str, setting: str) -> int:
    import grp

    if name.isdigit():
        return int(name)
    try:
        return grp.getgrnam(name).gr_gid
    except KeyError:
        raise ConfigError(f"{setting} is {name!r}, and there is no such group") from None
