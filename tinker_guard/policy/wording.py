"""Texts by which trainers, routers and gateways are told from each other."""

from __future__ import annotations

import re
from enum import StrEnum
from functools import lru_cache
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Collection

# Not in a name, such as my-checkpoint, nor what may come "in the near future".
_ONLY_TRAINERS: Final = (
    r"(?<![\w/.~-])(?<!\bin )(?<!\bin the )(?<!\bin a )(?<!\bnear )"
    r"(?:futures?(?!-[a-z]| (?:release|use|version|update|date|time)s?\b)|checkpoints?|seq_id"
    r"|(?:sampling|training)[ _]session{})\b"
)

TRAINERS_WORDS: Final = re.compile(
    _ONLY_TRAINERS.format("|samplers?|base[ _]model") + r"|\btinker://", re.IGNORECASE
)
"""What only a trainer has. Not "model" and "session": gateways route by both. Nor what stands in a
path, which a gateway gives back: /api/v1/samplers/s-1."""

# Whatever else is missing: gateways may route by base model and by sampler.
_DECISIVE: Final = re.compile(_ONLY_TRAINERS.format(""), re.IGNORECASE)

# Where weights are kept: a place that no request goes through.
_STORED: Final = re.compile(
    r"\b(?:tinker|twinkle|hf|s3|gs|gcs|az|abfss?)://|\bhuggingface\.co\b|\bhf\.co\b",
    re.IGNORECASE,
)

_HANDLERS: Final = (
    r"\b(?:method|service|app|application|handler|function|proxy|ingress|tunnel|listener)\b"
)

# What routers of many makers say where they know no way: Kong, APISIX, Cloudflare, Railway, Ray,
# Cloud Endpoints ("Method does not exist"), Express and its like ("Cannot GET /v1"), Kubernetes,
# Spring ("No static resource v1/accounts/a"), Supabase ("Requested function was not found").
ROUTERS_WORDS: Final = re.compile(
    r"\brout(?:e|es|er|ing)\b"
    r"|\b(?:path|url|uri|endpoint|page|host|hostname|domain|upstream|backend)s?\b"
    rf"|{_HANDLERS}.{{0,60}}?\b(?:not|no|cannot|unknown)\b"
    rf"|\b(?:not|no|cannot|unknown)\b.{{0,60}}?{_HANDLERS}"
    r"|\bcannot (?:get|post|head)\b|\bnot defined by this api\b"
    r"|\b(?:requested|static) resource\b|\bapi version\b"
    # A path that is given back, by Spring without its first slash. The name of a resource begins
    # with neither a slash nor the version of an API.
    r"|(?:\A|[\s\"'`(:])(?:/|v\d+\w*/)[\w.-]+/",
    re.IGNORECASE,
)


class Missing(StrEnum):
    """What a text says is not there.

    Gateways that are made with FastAPI write of places: dstack ("Service main/run-1 not found"),
    SkyServe ("No ready replicas"), MLflow ("The endpoint 'a' is not present or active").
    """

    JOB = "job"
    """The job, its trainer or its account, also by its id."""
    PLACE = "place"
    """What a request goes through on its way to a trainer: a route, a service, a server."""
    TRAINERS = "trainers"
    """What a trainer has: a model, a session, a checkpoint."""


NAMED: Final = "\0"
"""Stands for what the request's URL names."""
_BESIDE: Final = len(" id '")
"""So near to the beginning, or to "no" and "unknown", an id is what is missing."""

# Names like my-server or a/server.py may be those of models, and so may server-1.
_NOUN: Final = re.compile(
    r"(?<![\w/.~-])(?:"
    r"(?P<job>(?:(?:train(?:er|ing)[-_ ]?)?job|rlortrainerjob|trainer|account)"
    r"(?:[ _]?(?:id|name|state|status))?s?)"
    r"|(?P<trainers>(?:model|weight|checkpoint|adapter|lora|dataset|tokenizer|archive|artifact)s?"
    r"[ _](?:path|url|uri)s?"
    r"|(?:loss function|model|base[ _]model|session|run|weight|adapter|lora|loss|dataset|file"
    r"|tokenizer|archive|snapshot|future|checkpoint|sampler|seq_id|request|sample"
    r"|gradient|optimizer|step|state|prompt|sequence|batch|artifact|upload|download)s?)"
    r"|(?P<place>(?:service|route|routing(?: table)?|router|upstream|replica|endpoint|backend"
    r"|worker|server|host|hostname|deployment|instance|pod|node|target|destination|application|app"
    r"|resource|url|uri|page|path|domain|proxy|ingress|tunnel|listener|handler|method|function"
    r"|container|cluster|namespace|machine|gateway|load balancer|revision|region|tenant"
    r"|workspace)s?"
    # A path of an API.
    rf"|/?(?:training/)?(?:api|v\d+\w*)/[\w./{{}}{NAMED}-]+)"
    # A resource of Fireworks, wherever it stands; an id where no other thing stands before it.
    rf"|(?P<resource>(?!v\d)(?:[\w{NAMED}-]+/)*rlortrainerjobs/[\w.{NAMED}/-]+)"
    rf"|(?P<id>(?:[\w-]+/)*{NAMED}(?:/{NAMED})*)"
    r")(?![\w/~-])",
    re.IGNORECASE,
)

_ABSENCE: Final = re.compile(
    r"\b(?:not|no|non|none|never|nothing|notfound|cannot|unable|unknown|unrecognized|unavailable"
    r"|forbidden|missing|empty|gone|absent|invalid|undefined|unregistered|unreachable|unhealthy"
    r"|inactive|offline|down|deleted|removed|stopped|terminated|exited|evicted|expired|disabled"
    r"|refused|lost|starting|pending|without|failed|nonexistent|dead|creating|validating|queued"
    r"|re_?queueing|scheduling|provisioning|booting|initializing|restarting|resuming|paused"
    r"|suspended|hibernat(?:ed|ing)|sleeping|cancel(?:l?ed|l?ing)|completed|deleting|archived"
    r"|draining)\b|n['\N{RIGHT SINGLE QUOTATION MARK}]t\b",
    re.IGNORECASE,
)

# What is missing comes after these, and before all others: "Model m is not loaded".
_BEFORE: Final = re.compile(
    r"\b(?:no|unknown|missing|invalid|without)\b"
    r"|(?:\bnot|\bcannot|\bunable to|\bfail(?:ed|s)? to|n['\N{RIGHT SINGLE QUOTATION MARK}]t) "
    r"(?:find|locate|resolve|reach|get|see|serve|contact|connect to|know|have|hold|host|support)\b",
    re.IGNORECASE,
)

# A checkpoint's place, and no path of a request: "Path /mnt/run/step-1 does not exist", "Path not
# found: /mnt/run/step-1".
_FILE_PATH: Final = re.compile(
    r"\bpaths?((?: (?:is|does|could|was|not|be|exist|found|available)){0,4})"
    r"\W{1,3}?(?=\w+://|/(?![^\s'\"]*(?:api|training|v\d+)/)[\w.-]+/)",
    re.IGNORECASE,
)

# A job's name in one word: FineTuneJob, trainerJobId.
_JOB_IN_A_WORD: Final = re.compile(
    r"(?<![\w/])[A-Za-z]*[a-z](?=Job(?:s|Id|Name|State|Status)?(?![\w/]))"
)

_CLAUSE: Final = re.compile(r"[;!?\n()]+|[.,:](?=\s|\Z)")

_CODE: Final = re.compile(r"\w+")
# As Python's KeyError has it.
_ID_ALONE: Final = re.compile(rf"(?:KeyError)?\W*{NAMED}\W*")

# Another server's answer that is passed on: a page or a document, a JSON object, what a client
# raises (httpx, requests, aiohttp, urllib3), what the makers of gateways write without such a noun.
_PASSED_ON: Final = re.compile(
    r"\A\s*<[!?a-z]|<(?:!doctype|html)\b"
    r"|[\"']not found\.?[\"']"
    # A 404 after a word is an id: "Session 404 not found".
    r"|(?<![a-z] )\b404\W+(?:client error\W+)?not found\b"
    r"|\b(?:backend|upstream|server|gateway|proxy|service|pod|http)\b[^.\n]{0,20}\b404\b"
    r"|\bstatus[ _]?code\W{0,3}404\b|\b404 from\b|\bactive endpoint\b|/-/routes\b"
    r"|\bcannot (?:get|head|post|put|patch|delete|options)\b|\bnot defined by this api\b"
    r"|\b(?:not|cannot|unable to) (?:be )?routed?\b"
    r"|\bconnect(?:ion)? ?(?:refused|reset|aborted|closed|timed out|error|timeout|pool|attempts)"
    r"|\bmax retries exceeded\b|\bname resolution\b"
    # But for the numbers of files: ENOENT, EACCES, ENOTDIR, EISDIR, ENAMETOOLONG, ESTALE.
    r"|\berrno (?!(?:2|13|20|21|36|116)\b)"
    # gRPC, aiohttp, urllib, Go, Node.
    r"|\bfailed to connect\b|\bserver disconnected\b|\bremote end closed\b"
    r"|\bdial (?:tcp|udp|unix)\b|\bi/o timeout\b|\bgetaddrinfo\b"
    r"|\b(?:enotfound|econnrefused|econnreset|etimedout)\b"
    r"|\bbroken pipe\b|\bno route to host\b|\b(?:read|connect|handshake) timed out\b|\[ssl: "
    r"|\A(?:bad gateway|service unavailable|gateway time-?out)\b|\bfault filter abort\b"
    r"|\bmodal-http\b|\berr_ngrok",
    re.IGNORECASE,
)


# What will be otherwise soon, by its writer's own word.
_PASSES: Final = re.compile(
    r"\b(?:not (?:yet )?ready|starting|unavailable|retry|try (?:again|later)|please wait"
    r"|warming up|provisioning|booting|initializing|loading|scaling|scaled to (?:zero|0))\b",
    re.IGNORECASE,
)

# Of a job, as Fireworks writes it: "state=JOB_STATE_CREATING", "State: PAUSED".
_STATE: Final = re.compile(r"\bJOB_STATE_[A-Z]|\b[Ss](?:tate|tatus)\W{1,3}[A-Z_]{4}")

# Letters that English has not, or how other languages say without them that something is missing.
_FOREIGN: Final = re.compile(
    r"[^\W\d_a-zA-Z]|\b(?:nicht|kein(?:e[nrs]?)?|unbekannt\w*|introuvables?|inexist\w+|aucune?"
    r"|inconnue?s?|encontrad[ao]s?|encuentra|existe|desconocid[ao]s?|trovat[aoie]|inesistent[ei]"
    r"|niet|gevonden|hittades|ikke|inte|znalezion\w*|nenalezen\w*|bulunam\w+|ditemukan|nao)\b",
    re.IGNORECASE,
)


def missing_in(text: str, ids: Collection[str]) -> Missing | None:
    """What a text says is not there; None if it does not say.

    That is what follows "no", "unknown" or "cannot find", else the first thing in the clause that
    says that something is missing, stopped or not ready yet. Of two in a row the last one counts:
    a "sampler deployment" is a deployment.

    Args:
        text: The text.
        ids: What the request's URL names. It stands for the job where no other thing does.
    """
    # gRPC's clients write "rpc error: code = NotFound desc = ..." before it.
    said = without(ids, text, but_words=True).rpartition("desc = ")[2]
    if _ID_ALONE.fullmatch(said):
        return Missing.JOB
    if _CODE.fullmatch(said):
        # ROUTE_NOT_FOUND, RouteNotFound.
        said = re.sub(r"_|(?<=[a-z])(?=[A-Z])", " ", said)
    said = _JOB_IN_A_WORD.sub("", _FILE_PATH.sub(r"file\1 ", said))
    clauses = list(filter(str.strip, _CLAUSE.split(said)))
    things = [_nouns(clause, 0) for clause in clauses]
    is_absent = [_ABSENCE.search(clause) is not None for clause in clauses]
    decisive = [_DECISIVE.search(without(ids, clause)) is not None for clause in clauses]
    if any(is_absent[i] and decisive[i] for i in range(len(clauses))):
        return Missing.TRAINERS
    if any(is_absent) and _STORED.search(text):
        return Missing.TRAINERS
    if _PASSED_ON.search(said):
        return Missing.PLACE
    if _STATE.search(text) and not any(decisive):
        return Missing.JOB
    for i, clause in enumerate(clauses):
        if not is_absent[i]:
            continue
        before = _BEFORE.search(clause)
        after = _nouns(clause, before.end()) if before else []
        # "Not found: job j", "Trainer job: not found".
        around = (after, things[i], *things[i + 1 : i + 2], *things[max(i - 1, 0) : i])
        found = next(filter(None, around), None)
        if found:
            return found[0]
        # "No row for job-1".
        if NAMED in clause and not TRAINERS_WORDS.search(clause):
            return Missing.JOB
    if any(decisive):
        return Missing.TRAINERS
    return Missing.PLACE if _PASSES.search(said) else None


def _nouns(clause: str, begin: int) -> list[Missing]:
    """The kinds of the things in a clause, from a place on; of two in a row, that of the last."""
    found: list[tuple[int, Missing]] = []
    for noun in _NOUN.finditer(clause, begin):
        kind = str(noun.lastgroup)
        if kind == "resource" or (kind == "id" and noun.start() - begin <= _BESIDE):
            found.append((noun.end(), Missing.JOB))
        elif kind != "id":
            if found and noun.start() - found[-1][0] == 1:
                found.pop()
            found.append((noun.end(), Missing(kind)))
    return [kind for _, kind in found]


_REASON_PHRASE: Final = re.compile(
    r"[\W_]*(?:(?:(?:http|error|status)[\W_]*)*404)?[\W_]*"
    r"(?:(?:status[\W_]*code[\W_]*)?not[\W_]*found(?:[\W_]*(?:error|exception))?"
    r"(?:\W+(?:(?:request|trace|correlation)[\W_]*)?id\W+\S+)?)?[\W_]*"
)

PHRASE_LENGTH: Final = 64

_OF_PODS: Final = r"(?:-(?=\w*\d)\w++)*"
"""What Kubernetes adds to a name: sampler-7b-0, sampler-7b-5d9c7b-x2x9z. Not another word, which
may be somebody else's. Each part matches in one way alone: with several, the time to find that the
whole does not match would double with each part."""

TEXT_LENGTH: Final = 1000
"""How much of a text is searched: a pattern takes long for a text of a million characters."""


def is_reason_phrase(text: object) -> bool:
    """Whether a text says no more than the status 404 does."""
    return (
        isinstance(text, str)
        and len(text) <= PHRASE_LENGTH
        and _REASON_PHRASE.fullmatch(text.casefold()) is not None
    )


def without(ids: Collection[str], text: str, *, but_words: bool = False) -> str:
    """The beginning of a text, without what the request's URL names.

    Also of what is named after it, such as the pods and the host of a job.

    Args:
        ids: What the request's URL names.
        text: The text.
        but_words: Whether an id that is a word which is read here stays, but for one in quotes, in
            the name of a resource, or after the name of a thing: where a router speaks of a route,
            `route` is no id, but it is in `accounts/route` and in "job route".
    """
    # Cut before, so that a long text takes no time, and after: an id may stand at the first cut.
    text = text[: 2 * TEXT_LENGTH]
    for one in sorted(filter(None, ids), key=len, reverse=True):
        if not one.isalpha():
            named = (
                rf"()(?<![\w.~-])(?:[\w.~]+-)*{re.escape(one)}{_OF_PODS}(?:\.[\w.-]*)?(?![\w~-])"
            )
        elif but_words and _is_read(one):
            named = rf"(\w/|[\"'`]|{_AFTER}){one}(?![\w~-])"
        else:
            named = rf"()(?<![\w~-]){one}{_OF_PODS}(?![\w~-])"
        text = re.sub(named, rf"\1{NAMED}", text, flags=re.IGNORECASE)
    return text[:TEXT_LENGTH]


# What an id may follow. A "job route", though, may be a route too.
_AFTER: Final = r"\b(?:job|trainer|account|model|run)(?:[ _]id)?[:=]? "


@lru_cache(maxsize=1024)
def _is_read(word: str) -> bool:
    """Whether a word says something here by itself."""
    texts = (word, f"not {word}", f"{word} not", f"cannot {word}")
    patterns = (_NOUN, _ABSENCE, _BEFORE, _PASSED_ON, _PASSES, ROUTERS_WORDS)
    alone = [pattern.search(text) for pattern in patterns for text in texts]
    return any(found is not None and word in found.group() for found in alone)


def is_readable(text: str) -> bool:
    """Whether all of a text can be read here: it is short enough, and passes for English."""
    return len(text) <= TEXT_LENGTH and not _FOREIGN.search(text)
