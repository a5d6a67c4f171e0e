"""What the routes stand on: requests are checked, kept, drawn, and found again."""

from __future__ import annotations

import logging
import os
import secrets
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np

from ..core.errors import AitkError
from ..core.requests import SampleRequest
from ..engine import Engine
from ..engine.control_images import INPAINT, read_control_image
from ..engine.downloads import is_remote
from ..engine.files import check_fit, save_image, save_sample
from ..engine.weights import cache_folder
from ..pipelines._render import Step
from .access import Keys
from .errors import NotFoundError, UnknownRequestError
from .links import Links
from .lora_set import LoraSet
from .metrics import Metrics
from .queue import Queue, Work
from .schemas import InferenceRequest, Prompt
from .settings import Settings
from .store import Row, Store
from .translate import check_settings, sample_requests, settle

log = logging.getLogger("ai_toolkit_inference")
PATIENCE = 2.0  # seconds that a client waits for a LoRA to be tried on while others are drawn
HALF_SECONDS = 3600.0  # no file takes longer to write
Pictures = Sequence[Sequence[Any]]  # of PIL, for each prompt


@dataclass(frozen=True)
class Ticket:
    """A request that was taken. finished: ends with its last state."""

    id: str
    finished: Future[Row]


class Service:
    """One engine, its queue, and what is known of every request."""

    def __init__(self, settings: Settings) -> None:
        check_settings(settings)
        self.settings = settings
        self.keys = Keys(settings.api_key_file, settings.admin_key_file)
        self.engine = Engine(settings.device or None)
        self.store = Store(settings.output_folder)
        self.loras = LoraSet(self.engine, settings, self.store)
        self.queue = Queue(
            self.store,
            self._draw,
            settings.max_queue,
            settings.timeout,
            on_end=self._ended,
            tidy=self.tidy,
        )
        self.links = Links()
        self.metrics = Metrics(self)

    def start(self) -> None:
        """Begins to draw."""
        self.tidy()
        for half in self.settings.output_folder.glob(".*.part.*"):  # a killed server left it
            if time.time() - half.stat().st_mtime > HALF_SECONDS:
                half.unlink(missing_ok=True)
        self.queue.start()

    def close(self) -> None:
        """Stops drawing; requests that wait are drawn after the next start."""
        self.queue.close()
        self.store.close()

    def submit(
        self,
        request: InferenceRequest,
        pictures: Pictures,
        on_step: Callable[[Step], None] | None = None,
    ) -> Ticket:
        """A place in the queue. pictures: the control images of each prompt, of PIL.

        Raises what can be told before weights are read; a LoRA behind a link is fetched, and
        judged, in its turn.
        """
        self.queue.check_room()
        request = self.loras.fill(settle(request, self.settings))
        try:
            self._check(request, pictures)
        except AitkError as error:
            raise self.as_named(error) from error
        id = secrets.token_hex(16)
        files: dict[int, str] = {}
        prompts = [
            prompt.model_copy(update=self._keep(f"{id}_control_", prompt, images, files))
            for prompt, images in zip(request.prompts, pictures, strict=True)
        ]
        body = request.model_copy(update={"prompts": prompts}).model_dump()
        try:
            return Ticket(id, self.queue.add(id, body, on_step))
        except AitkError:
            self._remove_files(id)
            raise

    def row(self, id: str) -> Row:
        """The state of a request. Raises UnknownRequestError."""
        row = self.store.get(id)
        if row is None:
            raise UnknownRequestError(
                f"there is no request {id!r}; it was never made, or is older than "
                f"{self.settings.keep_hours} hours"
            )
        return row

    def file(self, name: str) -> Path:
        """The file of an output, by its id. Raises NotFoundError."""
        id, _, number = name.partition("_output_")
        row = self.store.get(id)
        for output in (row and row.outputs) or ():
            path = self.settings.output_folder / Path(output["file_path"]).name
            if output["id"] == name and number and path.is_file():
                return path
        raise NotFoundError(f"there is no file {name!r}; see the outputs of the request's result")

    def url(self, name: str, base: str) -> str:
        """A link to an output that needs no key. base: the server's address."""
        query = f"?{self.links.query(name)}" if self.keys.asked_for else ""
        return f"{base}/v1/files/{name}/content{query}"

    def as_named(self, error: AitkError) -> AitkError:
        """An error that calls files as clients do, without the folders they lie in."""
        text = str(error)
        for folder in (
            self.settings.lora_folder,
            self.settings.weights_folder,
            self.settings.picture_folder,
            self.engine.downloads,
            cache_folder(),
        ):
            if folder is not None:
                text = text.replace(f"{folder.resolve()}{os.sep}", "")
        named = type(error).__new__(type(error), text)  # whatever its __init__ takes
        named.__dict__ |= error.__dict__
        return named

    def _check(self, request: InferenceRequest, pictures: Pictures) -> None:
        samples = sample_requests(request, pictures, self.settings)
        recipe = samples[0].recipe
        if any(is_remote(name) for ref in recipe.adapters for name in ref.files):
            return
        for ref in recipe.adapters:
            self.engine.fit(recipe, ref, patience=PATIENCE)
        for sample in samples:
            plan = self.engine.plan(sample)
            if request.output_format:
                name = Path(f"output_format.{request.output_format}")
                check_fit(name, plan.spec.task, plan.settings.num_frames)

    def _keep(
        self, name: str, prompt: Prompt, images: Sequence[Any], files: dict[int, str]
    ) -> dict[str, str | None]:
        # every pixel, and the alpha if it has one; the prompt then names the files.
        # files: what is there already, as several prompts may have the same picture
        first = "ctrl_img" if prompt.ctrl_img else "ctrl_img_1"
        names: dict[str, str | None] = {"ctrl_img": None, "ctrl_img_1": None}
        for field, image in zip((first, "ctrl_img_2", "ctrl_img_3"), images, strict=False):
            if id(image) not in files:
                file = f"{name}{len(files)}{INPAINT if image.mode == 'RGBA' else '.'}png"
                save_image(np.asarray(image), self.settings.output_folder / file)
                files[id(image)] = file
            names[field] = files[id(image)]
        return names

    def _draw(self, row: Row, work: Work) -> list[dict[str, Any]]:
        request = InferenceRequest.model_validate(row.request)
        folder = self.settings.output_folder
        named = [[name for name in prompt.pictures if name] for prompt in request.prompts]
        known = {name: read_control_image(folder / name) for name in {*chain(*named)}}
        pictures = [[known[name] for name in names] for names in named]
        outputs: list[dict[str, Any]] = []
        try:
            samples = sample_requests(request, pictures, self.settings)
            for index, sample in enumerate(samples):
                work.start_sample(index, len(samples))
                outputs.append(self._output(row.id, index, request.output_format, sample, work))
                self.metrics.weigh()
                self.store.update(row.id, outputs=outputs)
        except AitkError as error:
            raise self.as_named(error) from error
        return outputs

    def _output(
        self, id: str, index: int, ending: str, sample: SampleRequest, work: Work
    ) -> dict[str, Any]:
        result = self.engine.sample(
            sample, work.told_step, work.told_status, previews=work.on_step is not None
        )
        frames = len(result.frames)
        name = f"{id}_output_{index}"
        ending = ending or ("mp4" if frames > 1 else "jpg")
        path = save_sample(result, self.settings.output_folder.resolve() / f"{name}.{ending}")
        clip = {"num_frames": frames, "fps": result.info["fps"]} if frames > 1 else {}
        return {
            "id": name,
            "format": ending,
            "width": result.info["width"],
            "height": result.info["height"],
            **clip,
            "seed": result.info["seed"],
            "file_path": str(path),
            "info": result.info,
        }

    def _ended(self, row: Row) -> None:
        error = f": {row.error['message']}" if row.error else ""
        log.info("%s of %s %s%s", row.id, row.request["model"], row.status, error)
        self.metrics.count(row)
        self.tidy()

    def tidy(self) -> None:
        """Forgets requests that were finished long ago, with their files."""
        for old in self.store.finished_before(self.settings.keep_hours):
            self._remove_files(old.id)
            self.store.remove(old.id)

    def _remove_files(self, id: str) -> None:
        for file in self.settings.output_folder.glob(f"{id}_*"):
            file.unlink(missing_ok=True)
