"""Routes of files: uploads to ask about, and generated images that are answered as URLs."""

from typing import Annotated

from fastapi import Depends, FastAPI, Form
from starlette.responses import FileResponse, Response

from ddit.serve.answers import DeletedFile, FileObject
from ddit.serve.content import check_form, upload_bytes
from ddit.serve.errors import ApiError
from ddit.serve.files import StoredFile
from ddit.serve.schemas import UploadForm
from ddit.serve.service import FAULTS, Service


def add_file_routes(app: FastAPI, service: Service) -> None:
    """Adds /v1/files. Files are not listed: who knows an id may have its file."""

    @app.post(
        "/v1/files", tags=["files"], responses=FAULTS, dependencies=[Depends(check_form)],
        summary="Upload an image to ask about",
    )  # fmt: skip
    async def upload(body: Annotated[UploadForm, Form()]) -> FileObject:
        return _describe(await service.reader.keep(await upload_bytes(body.file, "file"), "file"))

    @app.get("/v1/files/{file_id}", tags=["files"], responses=FAULTS, summary="Describe a file")
    async def describe(file_id: str) -> FileObject:
        return _describe(_found(file_id))

    @app.get(
        "/v1/files/{file_id}/content", tags=["files"], summary="Read a file; needs no token, only its id",
        response_class=FileResponse, responses={**FAULTS, 200: {"content": {"image/*": {}}}},
    )  # fmt: skip
    async def content(file_id: str) -> Response:
        found = _found(file_id)
        headers = {"X-Content-Type-Options": "nosniff", "Content-Security-Policy": "default-src 'none'"}
        return FileResponse(found.path, media_type=found.media_type, headers=headers)

    @app.delete("/v1/files/{file_id}", tags=["files"], responses=FAULTS, summary="Remove a file")
    async def delete(file_id: str) -> DeletedFile:
        if not service.store.remove(file_id):
            raise _missing(file_id)
        return DeletedFile(id=file_id)

    def _found(file_id: str) -> StoredFile:
        found = service.store.find(file_id)
        if found is None:
            raise _missing(file_id)
        return found


def _missing(file_id: str) -> ApiError:
    return ApiError(f"no such file: '{file_id[:60]}'", status=404, param="file_id", code="file_not_found")


def _describe(file: StoredFile) -> FileObject:
    return FileObject(id=file.id, bytes=file.num_bytes, created_at=file.created, filename=file.name)
