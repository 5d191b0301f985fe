"""NVIDIA FLARE's homomorphic encryption, by FLARE's own classes. Runs in FLARE's virtual environment.

The path of one round in FLARE's HE jobs: a client's task-result filter encrypts, the cell encodes the message;
the server's cell decodes it and the in-time aggregator takes it in; the shareable generator makes the next
task of the aggregate, the cell encodes that; a client's cell decodes it and its task-data filter decrypts.
Keys come from FLARE's provisioning code with its default parameters. The model is one tensor, the best case:
FLARE sends the evaluation keys once for each tensor.
"""

from __future__ import annotations

import argparse
import logging
import tempfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from nvflare.apis.dxo import DXO, DataKind, MetaKey, from_shareable
from nvflare.apis.event_type import EventType
from nvflare.apis.fl_constant import FLContextKey, ReservedKey
from nvflare.apis.fl_context import FLContext
from nvflare.apis.shareable import Shareable
from nvflare.app_common.abstract.model import make_model_learnable
from nvflare.app_common.app_constant import AppConstants
from nvflare.app_opt.he.intime_accumulate_model_aggregator import HEInTimeAccumulateWeightedAggregator
from nvflare.app_opt.he.model_decryptor import HEModelDecryptor
from nvflare.app_opt.he.model_encryptor import HEModelEncryptor
from nvflare.app_opt.he.model_shareable_generator import HEModelShareableGenerator
from nvflare.fuel.f3.cellnet.utils import decode_payload, encode_payload, new_cell_message
from nvflare.fuel.f3.message import Message
from nvflare.fuel.sec.security_content_service import SecurityContentService
from nvflare.lighter.constants import ProvFileName
from nvflare.lighter.impl.he import HEBuilder
from repetitions import Repetition, serve

TENSOR = "update"
ROUND = 0
LARGEST_ERROR = 1e-5  # of the mean; observed 1.6e-7


def _peer(number: int) -> FLContext:
    context = FLContext()
    context.set_prop(ReservedKey.IDENTITY_NAME, f"site-{number}", private=False, sticky=False)
    return context


def _context(folder: Path) -> FLContext:
    """Keys as ``nvflare provision`` makes them, and the context that components get.

    The key files are not signed by a FLARE root: that signature is checked once, at start, and not timed.
    """
    builder = HEBuilder()
    builder.initialize(None, None)
    (folder / ProvFileName.CLIENT_CONTEXT_TENSEAL).write_bytes(builder.get_serialized_context(is_client=True))
    (folder / ProvFileName.SERVER_CONTEXT_TENSEAL).write_bytes(builder.get_serialized_context())
    SecurityContentService.initialize(str(folder))
    context = FLContext()
    context.set_prop(FLContextKey.SECURE_MODE, False, private=True, sticky=False)
    context.set_prop(AppConstants.CURRENT_ROUND, ROUND)
    context.set_peer_context(_peer(0))
    return context


class FlareRound:
    """A client's and the server's components, and the other clients' encoded uploads."""

    def __init__(self, parameters: int, sites: int, folder: Path) -> None:
        self._context = _context(folder)
        self._encryptor, self._decryptor = HEModelEncryptor(), HEModelDecryptor()
        self._aggregator = HEInTimeAccumulateWeightedAggregator(expected_data_kind=DataKind.WEIGHTS)
        self._generator = HEModelShareableGenerator()
        for component in (self._encryptor, self._decryptor, self._aggregator, self._generator):
            component.handle_event(EventType.START_RUN, self._context)
        generator = np.random.default_rng(parameters)
        self._update = generator.normal(0, 0.05, parameters).astype(np.float32)
        self._sites, self._others = sites, list[Message]()

    def _upload(self, done: Repetition) -> Message:
        dxo = DXO(DataKind.WEIGHTS, {TENSOR: self._update}, meta={MetaKey.NUM_STEPS_CURRENT_ROUND: 1})
        shareable = dxo.to_shareable()
        shareable.add_cookie(AppConstants.CONTRIBUTION_ROUND, ROUND)
        with done.peak("client"):
            with done.timed("encrypt_only"):
                shareable = self._encryptor.process(shareable, self._context)
            with done.timed("serialise"):
                message = new_cell_message({}, shareable)
                done.bytes["up"] = encode_payload(message)
        return message

    def _aggregate(self, uploads: list[Message], done: Repetition) -> Message:
        with done.peak("server"), done.timed("add"):
            for number, upload in enumerate(uploads):
                # Decoding replaces the payload, and the upload is wanted again.
                message = new_cell_message(dict(upload.headers), upload.payload)
                decode_payload(message)
                message.payload.set_peer_props(_peer(number).get_all_public_props())
                with done.timed("add_only"):
                    accepted = self._aggregator.accept(message.payload, self._context)
                if not accepted:
                    raise RuntimeError(f"FLARE's aggregator did not accept upload {number}")
            with done.timed("add_only"):
                aggregate = self._aggregator.aggregate(self._context)
            self._context.set_prop(
                AppConstants.GLOBAL_MODEL, make_model_learnable({TENSOR: self._update}, {})
            )
            model = self._generator.shareable_to_learnable(aggregate, self._context)
            task = new_cell_message({}, self._generator.learnable_to_shareable(model, self._context))
            done.bytes["down"] = encode_payload(task)
        return task

    def _open(self, task: Message, done: Repetition) -> NDArray[np.float64]:
        with done.timed("decrypt"):
            decode_payload(task)
            shareable: Shareable = self._decryptor.process(task.payload, self._context)
        return np.asarray(from_shareable(shareable).data[TENSOR])

    def repeat(self, done: Repetition) -> None:
        """One client's upload, the sum of all uploads, one client's opening of it."""
        upload = self._upload(done)
        # Not before the first: SEAL keeps freed memory for itself, and its peak would not show.
        while len(self._others) < self._sites - 1:
            self._others.append(self._upload(Repetition()))
        done.seconds["encrypt"] = done.seconds["encrypt_only"] + done.seconds["serialise"]
        opened = self._open(self._aggregate([upload, *self._others], done), done)
        error = float(np.abs(opened - self._update).max())  # all uploads are the same, and so is their mean
        if not error < LARGEST_ERROR:
            raise RuntimeError(f"FLARE's opened mean is off by {error:.3g}: this is not what it does")


def prepare(arguments: argparse.Namespace) -> Callable[[Repetition], None]:
    """FLARE's side of ``serve``."""
    logging.disable(logging.ERROR)  # FLARE logs an error for every event without its job engine
    with tempfile.TemporaryDirectory(prefix="cipherward-flare-") as folder:
        return FlareRound(arguments.parameters, arguments.sites, Path(folder)).repeat


if __name__ == "__main__":
    serve(prepare)
