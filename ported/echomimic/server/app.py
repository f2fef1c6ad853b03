"""The HTTP side: endpoints and request fields of the specification (10.2), in a corrected form.

Parameters are form fields, as the uploads are; a query parameter or an unknown field is refused instead of being ignored.
"""

from __future__ import annotations

from dataclasses import asdict
from importlib import resources
from typing import Annotated, Any, Literal

import torch
from fastapi import FastAPI, File, Form, HTTPException, Path, Query, Request, UploadFile
from fastapi.concurrency import run_in_threadpool
from fastapi.responses import FileResponse, HTMLResponse, JSONResponse
from starlette.datastructures import UploadFile as Sent

from ported.echomimic.server.service import Service
from ported.echomimic.server.uploads import UploadError, pose_folders
from ported.echomimic.settings import Settings

FIELDS = {
    "image",
    "audio",
    "pose_dir_name",
    "width",
    "height",
    "length",
    "steps",
    "cfg",
    "fps",
    "seed",
    "context_frames",
    "context_overlap",
    "nonfinite",
}
REFUSALS: dict[int | str, dict[str, Any]] = {
    400: {"description": "a field, query parameter or pose folder that there is not"},
    413: {"description": "too large or too long"},
    422: {"description": "a field that cannot be used, with the reason"},
    503: {"description": "no models, or too many jobs"},
}
JobId = Annotated[str, Path(pattern="^[0-9a-f]{32}$", description="as `/generate-video` gave it")]


def create_app(service: Service) -> FastAPI:
    """Return the application around a service."""
    app = FastAPI(title="EchoMimicV2", description="A portrait, a voice and poses in; a clip out.", version="1")
    app.state.service = service
    _add_page(app)
    _add_jobs(app, service)
    _add_information(app, service)

    @app.exception_handler(UploadError)
    async def refuse(request: Request, error: UploadError) -> JSONResponse:
        return JSONResponse({"detail": str(error)}, status_code=error.status)

    return app


def _add_page(app: FastAPI) -> None:
    page = resources.files("ported.echomimic.server").joinpath("page.html").read_text(encoding="utf-8")

    @app.get("/", response_class=HTMLResponse, include_in_schema=False)
    async def index() -> str:
        return page


def _add_jobs(app: FastAPI, service: Service) -> None:
    @app.post("/generate-video", status_code=202, responses=REFUSALS)
    async def generate_video(
        request: Request,
        image: Annotated[UploadFile, File(description="PNG, JPEG or WebP")],
        audio: Annotated[UploadFile, File(description="any sound file that FFmpeg reads")],
        pose_dir_name: Annotated[str, Form(min_length=1, max_length=64)] = "01",
        width: Annotated[int, Form(ge=8, le=4096)] = 768,
        height: Annotated[int, Form(ge=8, le=4096)] = 768,
        length: Annotated[int | None, Form(ge=1, le=100000)] = None,
        steps: Annotated[int, Form(ge=1, le=1000)] = 6,
        cfg: Annotated[float, Form(ge=0, le=20, allow_inf_nan=False)] = 1.0,
        fps: Annotated[int, Form(ge=1, le=60)] = 24,
        seed: Annotated[int | None, Form(ge=-1, le=2**63 - 1)] = 420,
        context_frames: Annotated[int, Form(ge=2, le=32)] = 12,
        context_overlap: Annotated[int, Form(ge=0, le=31)] = 3,
        nonfinite: Annotated[Literal["fail", "clean"], Form()] = "fail",
    ) -> dict[str, Any]:
        """Queue a job; answers at once with where its state is found."""
        await _refuse_unknown(request)
        limits = service.limits.uploads
        picture = await _read(image, "image", limits.image_bytes)
        voice = await _read(audio, "audio", limits.audio_bytes)
        settings = Settings(
            width=width,
            height=height,
            length=length,
            steps=steps,
            cfg=cfg,
            fps=fps,
            seed=None if seed is None or seed < 0 else seed,
            context_frames=context_frames,
            context_overlap=context_overlap,
            nonfinite=nonfinite,
        )
        job = await run_in_threadpool(service.submit, picture, voice, pose_dir_name, settings)
        return {
            "job_id": job.job_id,
            "status": job.status,
            "message": f"queued: {job.total_frames} frames",
            "status_url": f"/job-status/{job.job_id}",
        }

    @app.get("/job-status/{job_id}", responses={404: {"description": "no such job"}})
    async def job_status(job_id: JobId) -> dict[str, Any]:
        job = service.jobs.get(job_id)
        if job is None:
            raise HTTPException(404, "there is no such job")
        return asdict(job)

    @app.get("/list-jobs")
    async def list_jobs(limit: Annotated[int, Query(ge=1, le=1000)] = 50) -> dict[str, Any]:
        """The newest jobs first."""
        return {"jobs": [asdict(job) for job in service.jobs.newest(limit)]}

    @app.get(
        "/jobs/{job_id}/clip.mp4",
        response_class=FileResponse,
        responses={200: {"content": {"video/mp4": {}}}, 404: {"description": "no such clip"}},
    )
    async def clip(job_id: JobId) -> FileResponse:
        job = service.jobs.get(job_id)
        if job is None or job.status != "completed":
            raise HTTPException(404, "there is no such clip" if job is None else f"the job is {job.status}")
        return FileResponse(service.jobs.folder(job_id) / "clip.mp4", media_type="video/mp4")


def _add_information(app: FastAPI, service: Service) -> None:
    @app.get("/health")
    async def health() -> dict[str, Any]:
        """`healthy` only when a job could run."""
        loaded, cuda = service.networks is not None, torch.cuda.is_available()
        return {
            "status": "healthy" if loaded else "degraded",
            "models_loaded": loaded,
            "device": "cuda" if cuda else "cpu",
            "cuda_available": cuda,
            "gpu_name": torch.cuda.get_device_name() if cuda else None,
            "jobs_waiting": service.jobs.count("queued"),
            "jobs_running": service.jobs.count("processing"),
        }

    @app.get("/models-status")
    async def models_status() -> dict[str, Any]:
        parts = service.networks.parts() if service.networks is not None else {}
        return {
            "models": {**dict.fromkeys(parts, True), **dict.fromkeys(service.missing, False)},
            "all_available": service.networks is not None,
            "pipeline_loaded": service.networks is not None,
            "missing_models": list(service.missing),
        }

    @app.get("/pose-directories")
    async def pose_directories() -> dict[str, Any]:
        folders = await run_in_threadpool(pose_folders, service.pose_root)
        return {
            "directories": [
                {"name": name, "file_count": len(files), "duration_at_24fps": len(files) / 24}
                for name, files in folders.items()
            ]
        }


async def _refuse_unknown(request: Request) -> None:
    """What would be ignored is refused: a client that sends `steps` in the query would get other steps than it asked for."""
    if request.query_params:
        raise UploadError(f"query parameters are not read: {_names(request.query_params)}; send form fields", 400)
    unknown = set(await request.form()) - FIELDS
    if unknown:
        raise UploadError(f"unknown fields: {_names(unknown)}", 400)


def _names(given: Any) -> str:
    return ", ".join(repr(str(name)[:40]) for name in sorted(given)[:5])


async def _read(sent: Sent, name: str, most: int) -> bytes:
    data = await sent.read(most + 1)
    if len(data) > most:
        raise UploadError(f"{name}: more than {most >> 20} MiB", 413)
    if not data:
        raise UploadError(f"{name}: it is empty")
    return data
