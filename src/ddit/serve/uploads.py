"""Routes of files: uploads to ask about, and drawn pictures that are answered as URLs."""

from typing import Any

from fastapi import FastAPI
from starlette.datastructures import UploadFile
from starlette.requests import Request
from starlette.responses import FileResponse, JSONResponse, Response

from ddit.serve.content import check_is_form, upload_bytes
from ddit.serve.errors import ApiError
from ddit.serve.files import StoredFile
from ddit.serve.service import FAULTS, Service

MAX_FIELD_BYTES = 4_000
PURPOSES = ("vision", "user_data", "assistants")

FILE_FORM: dict[str, Any] = {
    "requestBody": {
        "required": True,
        "content": {
            "multipart/form-data": {
                "schema": {
                    "type": "object",
                    "required": ["file"],
                    "properties": {
                        "file": {"type": "string", "format": "binary"},
                        "purpose": {"type": "string", "enum": list(PURPOSES)},
                    },
                }
            }
        },
    }
}


def add_file_routes(app: FastAPI, service: Service) -> None:
    """Adds /v1/files. There is no list of them: ids are what protects files."""

    @app.post(
        "/v1/files",
        tags=["files"],
        responses=FAULTS,
        openapi_extra=FILE_FORM,
        summary="Upload a picture to ask about",
    )
    async def upload(request: Request) -> Response:
        check_is_form(request)
        async with request.form(max_files=2, max_fields=8, max_part_size=MAX_FIELD_BYTES) as form:
            files = [value for name, value in form.multi_items() if name == "file"]
            if len(files) != 1 or not isinstance(files[0], UploadFile):
                raise ApiError(
                    "a form with one file named 'file' is needed", param="file", code="missing_file"
                )
            if form.get("purpose", "vision") not in PURPOSES:
                raise ApiError(f"purpose must be one of {', '.join(PURPOSES)}", param="purpose")
            stored = await service.reader.keep(await upload_bytes(files[0], "file"), "file")
        return JSONResponse(_describe(stored))

    @app.get("/v1/files/{file_id}", tags=["files"], responses=FAULTS, summary="What a file is")
    async def describe(file_id: str) -> JSONResponse:
        return JSONResponse(_describe(_found(file_id)))

    @app.get(
        "/v1/files/{file_id}/content", tags=["files"], summary="A file's bytes; its id is all that is needed",
        response_class=FileResponse, responses={**FAULTS, 200: {"content": {"image/*": {}}}},
    )  # fmt: skip
    async def content(file_id: str) -> Response:
        found = _found(file_id)
        headers = {"X-Content-Type-Options": "nosniff", "Content-Security-Policy": "default-src 'none'"}
        return FileResponse(found.path, media_type=found.media_type, headers=headers)

    @app.delete("/v1/files/{file_id}", tags=["files"], responses=FAULTS, summary="Remove a file")
    async def delete(file_id: str) -> JSONResponse:
        if not service.store.remove(file_id):
            raise _missing(file_id)
        return JSONResponse({"id": file_id, "object": "file", "deleted": True})

    def _found(file_id: str) -> StoredFile:
        found = service.store.find(file_id)
        if found is None:
            raise _missing(file_id)
        return found


def _missing(file_id: str) -> ApiError:
    return ApiError(f"no such file: '{file_id[:60]}'", status=404, param="file_id", code="file_not_found")


def _describe(file: StoredFile) -> dict[str, Any]:
    return {
        "id": file.id,
        "object": "file",
        "bytes": file.num_bytes,
        "created_at": file.created,
        "filename": file.name,
        "purpose": "vision",
        "status": "processed",
    }
