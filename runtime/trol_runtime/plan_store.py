"""Where plans are kept: in the engine file, or, where that cannot be added to, in the user's cache directory.

Nothing comes out that was not built here, unless the user trusts the file, and nothing whose bytes are not those that
went in. A damaged plan in the cache is as good as none: it is built again.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path

from trol_runtime.bundle import Bundle
from trol_runtime.bundle_appender import BundleAppender
from trol_runtime.errors import EngineFileError, TrolError
from trol_runtime.manifest import PlanEntry
from trol_runtime.plan_cache import cache_plan, cached_plans
from trol_runtime.plan_choice import Device, entry_of, fitting, graphs_sha256, none_fits
from trol_runtime.plan_signature import refusal, signed, trusted

# The serialized plan of every role.
Contents = Mapping[str, "bytes | memoryview"]


@dataclass(frozen=True)
class StoredPlan(Mapping[str, bytes]):
    """A plan that may run here; `place` is the engine file or the folder that holds it.

    By role the serialized plans, each read when it is asked for and not kept: with weights inside they are large.
    """

    plan: PlanEntry
    place: Path
    _read_entry: Callable[[str], bytes]

    def read(self, role: str) -> bytes:
        """The serialized plan of a role, verified; raises EngineFileError if it is damaged or there is none."""
        try:
            return self._read_entry(entry_of(self.plan, role))
        except EngineFileError as error:
            raise EngineFileError(
                f"{error}, or build plans anew with: trol-export --add-target {self.plan.target} FILE"
            ) from None

    __getitem__ = read

    def __iter__(self) -> Iterator[str]:
        return iter(self.plan.roles)

    def __len__(self) -> int:
        return len(self.plan.roles)


def find_plan(bundle: Bundle, device: Device, *, trust_plans: bool = False) -> StoredPlan | None:
    """The plan for this machine, from the file or from the cache; None: `why_none`, and one is to be built."""
    for plan in fitting(bundle.manifest.plans, bundle.manifest, device):
        if trusted(plan, bundle, trust_plans):
            return StoredPlan(plan, bundle.path, bundle.read)
    cached = {plan.plan.key: plan for plan in cached_plans(bundle.manifest, device.target)}
    for plan in fitting([plan.plan for plan in cached.values()], bundle.manifest, device):
        if cached[plan.key].is_whole():
            return StoredPlan(plan, cached[plan.key].folder, cached[plan.key].read)
    return None


def why_none(bundle: Bundle, device: Device) -> str:
    """One line on why `find_plan` found nothing: a plan that is not trusted, or none that fits."""
    refused = fitting(bundle.manifest.plans, bundle.manifest, device)
    return refusal(refused[0], bundle) if refused else none_fits(bundle.path, bundle.manifest, device)


def keep_plan(bundle: Bundle, plan: PlanEntry, contents: Contents) -> StoredPlan:
    """Keep a plan that was built here for this machine, and return it as it was read back.

    Raises TrolError when neither the file nor the cache takes it.
    """
    # What somebody else built for themselves stays theirs: two users would replace each other's plan for ever.
    if not any(_same_key(plan, other) for other in bundle.manifest.plans):
        with suppress(TrolError):
            return add_plan(bundle.path, plan, contents)
    plan, sha256 = _signed(plan, contents)
    by_entry = {entry_of(plan, role): data for role, data in contents.items()}
    cached = cache_plan(bundle.manifest, plan, sha256, by_entry)
    return StoredPlan(plan, cached.folder, cached.read)


def add_plan(path: Path, plan: PlanEntry, contents: Contents) -> StoredPlan:
    """Sign a plan, add it to the engine file in place of one with its key, and return it as it was read back.

    Raises TrolError as BundleAppender does, and when the file does not hold the graphs the plan was built from.
    """
    plan, _ = _signed(plan, contents)
    with BundleAppender(path) as appender:
        if graphs_sha256(appender.manifest) != plan.graphs:
            raise TrolError(f"{path}: holds other graphs than those the plan was built from; run the command again")
        appender.require_free_bytes(sum(memoryview(data).nbytes for data in contents.values()))
        for role, data in contents.items():
            appender.add(entry_of(plan, role), data)
        others = [other for other in appender.manifest.plans if not _same_key(plan, other)]
        bundle = appender.finish(replace(appender.manifest, plans=(*others, plan)))
    return StoredPlan(plan, bundle.path, bundle.read)


def describe_plan(bundle: Bundle, stored: StoredPlan, computes: Mapping[str, Mapping[str, str]]) -> StoredPlan:
    """Replace what the record of a kept plan says of its layers; its contents stay.

    bundle: the engine that it was built from. computes: as in PlanEntry
    Raises TrolError as `add_plan` and `cache_plan` do; the plan is kept as it was, then.
    """
    described = replace(stored.plan, computes={role: dict(groups) for role, groups in computes.items()})
    plan, sha256 = _signed(described, stored)
    if stored.place != bundle.path:
        cached = cache_plan(bundle.manifest, plan, sha256, {})
        return StoredPlan(plan, cached.folder, cached.read)
    with BundleAppender(bundle.path) as appender:
        plans = tuple(plan if other == stored.plan else other for other in appender.manifest.plans)
        appended = appender.finish(replace(appender.manifest, plans=plans))
    return StoredPlan(plan, appended.path, appended.read)


def _signed(plan: PlanEntry, contents: Contents) -> tuple[PlanEntry, dict[str, str]]:
    """The plan with this user's signature, and the SHA-256 of its contents by entry."""
    sha256 = {entry_of(plan, role): hashlib.sha256(data).hexdigest() for role, data in contents.items()}
    return signed(plan, sha256), sha256


def _same_key(plan: PlanEntry, other: PlanEntry) -> bool:
    return (plan.target, plan.key) == (other.target, other.key)
