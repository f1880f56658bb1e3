"""Plans that were built here: signed with a key that only this user has. Others are code of strangers.

NVIDIA, "Security Considerations" of TensorRT 11.4: to deserialise an engine of an untrusted source is to run its native
code, and `getEngineValidity` does not notice what was changed. So nothing of a plan is handed on before this module has
seen its signature and `Bundle.read` its hash.
"""

from __future__ import annotations

import hashlib
import hmac
import json
from collections.abc import Mapping
from dataclasses import asdict, replace

from trol_runtime.bundle import Bundle
from trol_runtime.manifest import PlanEntry
from trol_runtime.user_cache import make_key, read_key


def signed(plan: PlanEntry, sha256: Mapping[str, str]) -> PlanEntry:
    """`plan` with this user's signature under its record and its contents; raises TrolError without a place for a key.

    sha256: of its entries, by name
    """
    return replace(plan, signature=_signature(make_key(), plan, sha256))


def built_here(plan: PlanEntry, sha256: Mapping[str, str]) -> bool:
    """Whether `signed` was called by this user with this very plan and these hashes."""
    key = read_key()
    if plan.signature is None or key is None:
        return False
    return hmac.compare_digest(_signature(key, plan, sha256).encode(), plan.signature.encode())


def trusted(plan: PlanEntry, bundle: Bundle, trust_plans: bool) -> bool:
    """Whether a plan in the engine file may run; `refusal` says why not."""
    return trust_plans or built_here(plan, bundle.manifest.sha256.entries)


def refusal(plan: PlanEntry, bundle: Bundle) -> str:
    """Why a plan is not trusted, and what to do, in one line."""
    found = "has no signature" if plan.signature is None else "was signed by another user, or changed since"
    return (
        f"{bundle.path}: its {plan.target} plan {plan.key} {found}; expected one that was built here, because a plan "
        "is code; have it built anew from the graphs, or trust whoever made the file: --trust-plans"
    )


def _signature(key: bytes, plan: PlanEntry, sha256: Mapping[str, str]) -> str:
    record = {name: value for name, value in asdict(plan).items() if name != "signature"}
    contents = {entry: sha256.get(entry) for entry in plan.entries}
    message = json.dumps([record, contents], sort_keys=True, separators=(",", ":"))
    return hmac.new(key, message.encode("ascii"), hashlib.sha256).hexdigest()
