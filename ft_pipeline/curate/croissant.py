"""The curated dataset described in Croissant (JSON-LD, mlcommons.org/croissant/1.0), written by hand beside its files."""

from __future__ import annotations

import json
from typing import Any

from ft_pipeline.curate.artifact import CROISSANT, ROW_COLUMNS, SPLITS
from ft_pipeline.store.artifacts import Draft
from ft_pipeline.store.files import write_atomic
from ft_pipeline.store.fingerprint import sha256_file, sha256_json

CONTEXT = {
    "@language": "en", "@vocab": "https://schema.org/", "sc": "https://schema.org/", "cr": "http://mlcommons.org/croissant/",
    "rai": "http://mlcommons.org/croissant/RAI/", "dct": "http://purl.org/dc/terms/", "prov": "http://www.w3.org/ns/prov#",
    "citeAs": "cr:citeAs", "column": "cr:column", "conformsTo": "dct:conformsTo", "data": {"@id": "cr:data", "@type": "@json"},
    "dataType": {"@id": "cr:dataType", "@type": "@vocab"}, "equivalentProperty": "cr:equivalentProperty", "examples": {"@id": "cr:examples", "@type": "@json"}, "samplingRate": "cr:samplingRate",
    "extract": "cr:extract", "field": "cr:field", "fileProperty": "cr:fileProperty", "fileObject": "cr:fileObject",
    "fileSet": "cr:fileSet", "format": "cr:format", "includes": "cr:includes", "isLiveDataset": "cr:isLiveDataset",
    "jsonPath": "cr:jsonPath", "key": "cr:key", "md5": "cr:md5", "parentField": "cr:parentField", "path": "cr:path",
    "recordSet": "cr:recordSet", "references": "cr:references", "regex": "cr:regex", "repeated": "cr:repeated",
    "replace": "cr:replace", "separator": "cr:separator", "source": "cr:source", "subField": "cr:subField", "transform": "cr:transform",
}  # fmt: skip
MEANINGS = {
    "row_id": "Name of the row, from the bytes it came as.",
    "shape": "chat, completion, preference, kto, rlvr, stepwise or text.",
    "content": "The row in the one schema of its shape, canonical JSON.",
    "cluster": "Rows with near-equal prompts or texts share one, and one split.",
    "origin": "File and line in the raw dataset.",
    "source": "Source of a mixed dataset.",
}


def write_croissant(draft: Draft, licence: str) -> None:
    """Writes `croissant.json` over the split files of a draft.

    Its logical digest leaves the files' hashes out: Parquet's bytes change with the library, the rows do not.
    """
    names = [f"{split}.parquet" for split in SPLITS]
    hashes = {name: sha256_file(draft.folder / name) for name in names}
    document = _document(draft, licence, hashes)
    write_atomic(draft.folder / CROISSANT, json.dumps(document, indent=1, sort_keys=True).encode() + b"\n")
    draft.logical[CROISSANT] = sha256_json(_document(draft, licence, dict.fromkeys(names, "")))


def _document(draft: Draft, licence: str, hashes: dict[str, str]) -> dict[str, Any]:
    fingerprint = draft.spec.fingerprint
    return {
        "@context": CONTEXT,
        "@type": "sc:Dataset",
        "@id": f"sha256:{fingerprint}",
        "name": f"curated-dataset-{fingerprint[:12]}",
        "description": "Rows that were normalised, validated, filtered and deduplicated; every other row is in ledger.parquet with its reason.",
        "conformsTo": "http://mlcommons.org/croissant/1.0",
        "license": licence,
        "version": "1.0.0",
        "prov:wasDerivedFrom": [{"@id": f"sha256:{ref.digest}"} for ref in draft.spec.parents.values()],
        "distribution": [
            {
                "@type": "cr:FileObject", "@id": name, "name": name, "contentUrl": name, "sha256": sha256,
                "encodingFormat": "application/x-parquet",
            }
            for name, sha256 in hashes.items()
        ],
        "recordSet": [_records(split) for split in SPLITS],
    }  # fmt: skip


def _records(split: str) -> dict[str, Any]:
    return {
        "@type": "cr:RecordSet",
        "@id": split,
        "name": split,
        "key": {"@id": f"{split}/row_id"},
        "field": [
            {
                "@type": "cr:Field", "@id": f"{split}/{column}", "name": column, "description": MEANINGS[column],
                "dataType": "sc:Text",
                "source": {"fileObject": {"@id": f"{split}.parquet"}, "extract": {"column": column}},
            }
            for column in ROW_COLUMNS
        ],
    }  # fmt: skip
