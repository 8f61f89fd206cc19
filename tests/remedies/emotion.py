"""Remedies of the trainer of valence and arousal: its options, its networks, its files, its predictions."""

from __future__ import annotations

import functools
import math
import re
import sys
import types
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any
from unittest import mock

import numpy as np
import torch
import torchvision
from PIL import Image

from adaptive_margin import ConstantMargin
from adaptive_margin.emotion.config import DATASETS, AdamConfig, EmotionConfig
from adaptive_margin.emotion.critics import Critic, CrossPersonObjective, FisherObjective, SphereObjective
from adaptive_margin.emotion.data import Part, load_data
from adaptive_margin.emotion.detect import face_detector
from adaptive_margin.emotion.evaluation import Evaluation, evaluate, read_predictions, read_result, write_evaluation
from adaptive_margin.emotion.export_hub import export_hub
from adaptive_margin.emotion.export_onnx import export_onnx
from adaptive_margin.emotion.model_file import Preprocessing, description, load_network, model_details, save_model
from adaptive_margin.emotion.nets import build_encoder, check_encoder, check_size, emotion_net
from adaptive_margin.emotion.predict import Predictor, find_files, predict
from adaptive_margin.emotion.runs import read_runs
from adaptive_margin.emotion.terms import build_term
from adaptive_margin.emotion.trainer import people_of
from adaptive_margin.faces import draw_faces, sample_identities
from adaptive_margin.images.decode import read_image
from adaptive_margin.stored import write_json
from adaptive_margin.training import Checkpoints, World

from ..emotion.cases import faces, iteration, tiny, who
from ..emotion.runs import Recorded
from .following import follow

HOW = Preprocessing(resize=48, size=44)
LEFT_OUT = "leave it out for the default"
REMEDY = "pass the model.pt of a run folder, the folder itself, or one of its checkpoints"


def config(**options: Any) -> bool:
    found = EmotionConfig(**options)
    return all(getattr(found, name) == value for name, value in options.items())


@functools.cache
def net() -> Any:
    torch.manual_seed(0)
    return emotion_net("small").eval()


config_of = functools.partial(tiny, critic="none")


def crossed(people: torch.Tensor | None) -> torch.Tensor:
    z, groups = torch.tensor([[0.0], [1.0], [2.0]]), torch.tensor([1, 1, 0])
    return CrossPersonObjective(ConstantMargin(1.0)).critic_loss(z, groups, people)


def strangers(known: bool = False) -> Part:
    """Four pictures, of two people or of nobody knows whom."""
    return Part(
        images=np.zeros((4, 32, 32, 3), dtype=np.uint8),
        slots=np.arange(4),
        labels=np.zeros((4, 2), dtype=np.float32),
        people=np.array([0, 0, 1, 1]) if known else np.full(4, -1),
        identity="person" if known else "picture",
        videos=(None,) * 4,
        frames=np.full(4, -1),
    )


def rows(count: int = 12, value: float = 0.0) -> list[tuple[torch.Tensor, torch.Tensor, torch.Tensor]]:
    """A data set of one batch, whose images are their own predictions."""
    truth = torch.linspace(-0.8, 0.8, 2 * count).reshape(count, 2)
    return [(truth + value, truth, torch.arange(count))] if count else []


@functools.cache
def evaluation(count: int = 12, value: float = 0.0, people: int = 0, keep: int = 0) -> Evaluation:
    who = np.arange(people) % 3 if people else None
    return evaluate(Recorded(), rows(count, value), people=who, keep_features=keep, resamples=4)


def evaluated(folder: Path, **extra: Any) -> bool:
    write_evaluation(folder, evaluation(), extra=extra)
    return bool(read_result(folder)["test"]) and len(read_predictions(folder)["row"]) == 12


def spoilt_result(folder: Path, **changes: Any) -> None:
    evaluated(folder)
    path = folder / "result.json"
    write_json(path, read_result(folder) | changes)
    read_result(folder)


def spoilt_predictions(folder: Path) -> None:
    evaluated(folder)
    np.savez(folder / "evaluation.npz", row=np.arange(3))
    read_predictions(folder)


def exported(folder: Path, tolerance: float) -> bool:
    """An export whose runtime answers zeros; the real one takes long."""
    runtime = mock.MagicMock()
    runtime.InferenceSession().run = lambda _, inputs: [np.zeros((len(inputs["images"]), 2), dtype=np.float32)]
    program = mock.MagicMock()
    program.model_proto.SerializeToString.return_value = b"onnx"
    modules = {"onnx": mock.MagicMock(), "onnxruntime": runtime, "onnxscript": mock.MagicMock()}
    with mock.patch.dict(sys.modules, modules), mock.patch("torch.onnx.export", return_value=program):
        return export_onnx(net(), HOW, folder / "model.onnx", tolerance=tolerance) <= tolerance


def saved(folder: Path) -> Path:
    """A run folder with a network and its checkpoints."""
    run = folder / "run"
    if not run.exists():
        job = {"net": dict(net().state_dict()), "model": description(net(), HOW)}
        Checkpoints(run / "checkpoints").save_best(1, job, 0.5)
        Checkpoints(run / "checkpoints").save(2, {"job": job})
        save_model(run / "model.pt", net(), HOW)
    return run


def hub(folder: Path, name: str, there: Mapping[str, str] = MappingProxyType({}), **options: bool) -> bool:
    """An export of a network to a folder that has some files."""
    run = saved(folder)
    (folder / name).mkdir(exist_ok=True)
    for file, text in there.items():
        (folder / name / file).write_text(text)
    export_hub(run, folder / name, **options)
    return loads(folder / name)


def loads(path: Path) -> bool:
    return load_network(path)[1] == HOW


def several(folder: Path) -> Path:
    """The folder of a benchmark with two runs."""
    for seed in (0, 1):
        save_model(folder / "bench" / "runs" / "caf" / f"seed{seed}" / "model.pt", net(), HOW)
    return folder / "bench"


LOADED = (
    lambda folder: loads(saved(folder) / "model.pt"),
    lambda folder: loads(saved(folder)),
    lambda folder: all(loads(path) for path in sorted((saved(folder) / "checkpoints").iterdir())),
)


def other(folder: Path, **content: Any) -> None:
    torch.save(content, folder / "other.pt")
    loads(folder / "other.pt")


def without_config(folder: Path, beside: bool = False) -> bool:
    """A checkpoint from before they said what they hold."""
    run = folder / "old"
    Checkpoints(run / "checkpoints").save(2, {"job": {"net": dict(net().state_dict())}})
    if beside:
        (run / "config.yaml").write_text("encoder: small\nresize: 48\nsize: 44\n")
    return loads(next((run / "checkpoints").iterdir()))


def of_another_version(folder: Path) -> None:
    save_model(folder / "model.pt", net(), HOW)
    content = torch.load(folder / "model.pt", weights_only=True)
    content["state_dict"] = {f"former.{name}": value for name, value in content["state_dict"].items()}
    torch.save(content, folder / "other.pt")
    loads(folder / "other.pt")


def body(folder: Path, encoder: str, state: Any) -> bool:
    torch.save(state, folder / "body.pt")
    found = build_encoder(encoder, folder / "body.pt").body.state_dict()
    return all(torch.equal(value, state[name]) for name, value in found.items())


def timm(name: str) -> bool:
    """With a package of that name that has two models."""
    models = types.ModuleType("timm")
    models.list_models = lambda: ["resnet18d", "vit_small"]  # type: ignore[attr-defined]
    with mock.patch.dict(sys.modules, timm=models):
        return check_encoder(name) is None


def pictures(folder: Path, name: str = "in/face.png") -> Path:
    path = folder / name
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.full((60, 60, 3), 120, dtype=np.uint8)).save(path)
    return path


def predicted(source: Path | list[Path], output: Path, **options: Any) -> bool:
    return predict(source, Predictor(net(), HOW), output, tell=lambda _: None, **options).pictures == 1


def by_person(person_norm: bool) -> bool:
    """Two pictures of one person, for a network of either kind."""
    predictor = Predictor(emotion_net("small", person_norm=person_norm), HOW)
    faces = predictor.several([np.full((60, 60, 3), grey, dtype=np.uint8) for grey in (90, 120)], same_person=True)
    return all(face.by_person is not None for (face,) in faces)


def linked(folder: Path, output: str = "out", unlink: bool = False) -> bool:
    pictures(folder, "in/sub/face.png")
    (folder / "elsewhere").mkdir(exist_ok=True)
    (folder / "out").mkdir(exist_ok=True)
    link = folder / "out" / "sub"
    if not link.is_symlink():
        link.symlink_to(folder / "elsewhere", target_is_directory=True)
    if unlink:
        link.unlink()
    return predicted(folder / "in", folder / output)


def twice(folder: Path) -> None:
    predicted(pictures(folder), folder / "out")
    predicted(pictures(folder), folder / "out")


def texts(folder: Path) -> None:
    (folder / "in").mkdir()
    (folder / "in" / "face.txt").write_text("a face")
    predicted(folder / "in", folder / "out")


def detected(folder: Path, array: bool) -> bool:
    face = draw_faces(sample_identities(1), [0.1], [0.1], size=96)[0]
    Image.fromarray(face).convert("L").save(folder / "grey.png")
    grey = np.asarray(Image.open(folder / "grey.png"))
    return isinstance(face_detector()(np.asarray(read_image(folder / "grey.png")) if array else grey), list)


def run_of(folder: Path) -> Path:
    for seed in (0, 1):
        evaluated(folder / "runs" / "caf" / f"seed{seed}", arm="caf", seed=seed)
    return folder / "runs"


def arms(folder: Path) -> int:
    return len(read_runs(folder)[0])


OWN = "from adaptive_margin.emotion.terms import LabelDistance, ReversedIdentity as Mine\n"
OWN_OTHERWISE = "from adaptive_margin.emotion.terms import Term\nclass Mine(Term):\n    def __init__(self): ...\n"


def own_term(folder: Path, name: str = "Mine", file: str = "own.py", text: str = OWN) -> bool:
    folder.mkdir(exist_ok=True)
    (folder / "own.py").write_text(text)
    return build_term(f"{folder / file}:{name}", 5, 3) is not None


CASES = [
    # terms.py
    follow(
        "pass FILE.py:CLASS, with a path from where you are",
        lambda folder: own_term(folder, file="other.py"),
        lambda folder: own_term(folder),
    ),
    follow(
        "give its __init__ these three arguments, as examples/own_arm.py has them",
        lambda folder: own_term(folder, text=OWN_OTHERWISE),
        lambda folder: own_term(folder / "again"),
    ),
    follow(
        "mend the file: python FILE.py",
        lambda folder: own_term(folder, text="import nothing_of_that_name"),
        lambda folder: own_term(folder / "again"),
    ),
    follow(
        "derive it from adaptive_margin.emotion.terms.Term",
        lambda folder: own_term(folder, "Path"),
        lambda folder: own_term(folder, "Mine"),
    ),
    # config.py
    follow("the paper has 1e-4", lambda: AdamConfig(lr=0), lambda: AdamConfig(lr=1e-4).lr == 1e-4),
    follow(
        "Adam's own are 0.9 and 0.999",
        lambda: AdamConfig(beta1=1.0),
        lambda: AdamConfig(beta1=0.9, beta2=0.999) == AdamConfig(),
    ),
    follow(
        "pass the folder that holds the data set; only the data set faces needs none",
        lambda: config(dataset="afew-va"),
        lambda folder: config(dataset="afew-va", root=str(folder)),
        lambda: config(dataset="faces"),
    ),
    follow(
        "pass --dataset (dataset=), too, one of affectnet, affectnet-reduced, afew-va, aff-wild, aff-wild2; or",
        lambda folder: config(root=str(folder)),
        *(lambda folder, name=name: config(root=str(folder), dataset=name) for name in DATASETS if name != "faces"),
        lambda: config(),
    ),
    follow(
        "leave it out, or give the default: it has an effect only with dataset aff-wild, aff-wild2",
        lambda: config(every=5),
        lambda: config(),
        lambda: config(every=1),
        lambda folder: config(every=5, dataset="aff-wild", root=str(folder)),
        lambda folder: config(every=5, dataset="aff-wild2", root=str(folder)),
    ),
    follow(
        "0 to 7 are the eight emotions, 8 is none of them",
        lambda folder: config(dataset="affectnet", root=str(folder), expressions=(11,)),
        lambda folder: config(dataset="affectnet", root=str(folder), expressions=tuple(range(8))),
        lambda folder: config(dataset="affectnet", root=str(folder), expressions=(8,)),
    ),
    follow(
        "the paper resizes to 256 and crops 224",
        lambda: config(size=300),
        lambda: config(resize=256, size=224),
    ),
    follow(LEFT_OUT, lambda: config(log_every=0), lambda: config() and EmotionConfig().log_every == 50),
    follow("correlations need two samples", lambda: config(batch_size=1), lambda: config(batch_size=2)),
    follow("training, validation and test share nobody", lambda: config(people=2), lambda: config(people=3)),
    follow(LEFT_OUT, lambda: config(dropout=1.0), lambda: config() and EmotionConfig().dropout == 0.5),
    follow(LEFT_OUT, lambda: config(seed=-1), lambda: config() and EmotionConfig().seed == 0),
    follow("1 keeps the step sizes as they are", lambda: config(lr_decay=0), lambda: config(lr_decay=1)),
    follow("leave it out for None", lambda: config(clip_norm=0), lambda: EmotionConfig().clip_norm is None),
    follow(
        "AFEW-VA is reported over five folds",
        lambda: config(fold=5, dataset="afew-va", root="x"),
        *(lambda fold=fold: config(fold=fold, dataset="afew-va", root="x") for fold in range(5)),
    ),
    # critics.py
    follow(
        "the default is a good start",
        lambda: FisherObjective(penalty=-1),
        lambda: isinstance(FisherObjective(), FisherObjective),
    ),
    follow("SphereGAN has 3", lambda: SphereObjective(moments=0), lambda: SphereObjective(moments=3).moments == 3),
    follow(
        "leave normalize out: a score of length 1 says only its sign",
        lambda: Critic(torch.nn.Linear(4, 1), FisherObjective(), normalize=True),
        lambda: Critic(torch.nn.Linear(4, 1), FisherObjective()).normalize is False,
    ),
    # nets.py
    follow(
        "did you mean 'resnet18' or",
        lambda: build_encoder("resnet18x"),
        lambda: build_encoder("resnet18").features == 512,
    ),
    follow(
        "'resnet18' has IMAGENET1K_V1 and DEFAULT",
        lambda: check_encoder("resnet18", "IMAGENET"),
        lambda: check_encoder("resnet18", "DEFAULT") is None,
        lambda: check_encoder("resnet18", "IMAGENET1K_V1") is None,
    ),
    follow("the smallest size is 63", lambda: check_size("alexnet", 20), lambda: check_size("alexnet", 63) is None),
    follow(
        "did you mean 'small' or 'resnet18' or 'alexnet'?",
        lambda: check_encoder("?"),
        *(lambda name=name: check_encoder(name) is None for name in ("small", "resnet18", "alexnet")),
    ),
    follow("see timm.list_models()", lambda: timm("timm:?"), lambda: timm("timm:vit_small")),
    follow("did you mean timm:resnet18d?", lambda: timm("timm:resnet18"), lambda: timm("timm:resnet18d")),
    follow(
        "save the backbone's own state_dict with torch.save",
        lambda folder: (folder / "body.pt").write_bytes(b"PK") and build_encoder("small", folder / "body.pt"),
        lambda folder: body(folder, "small", build_encoder("small").body.state_dict()),
        lambda folder: body(folder, "resnet18", torchvision.models.resnet18().state_dict()),
    ),
    follow(
        "save the backbone's own state_dict",
        lambda folder: body(folder, "small", net().state_dict()),
        lambda folder: body(folder, "small", net().encoder.body.state_dict()),
    ),
    # evaluation.py
    follow("pass a data set with rows", lambda: evaluation(count=0), lambda: evaluation().row.tolist() == [*range(12)]),
    follow(
        "index it as the batches' rows",
        lambda: evaluation(people=4),
        lambda: evaluation(people=12).person.tolist() == [0, 1, 2] * 4,
    ),
    follow(
        "the network diverged: take an earlier checkpoint",
        lambda: evaluation(value=math.nan),
        lambda: math.isfinite(evaluation().figures["rmse"]["mean"]),
    ),
    follow(
        "rename it",
        lambda folder: evaluated(folder, test="of mine"),
        lambda folder: evaluated(folder, my_test="of mine"),
    ),
    follow("evaluate the run again", lambda folder: spoilt_result(folder, format=0), evaluated),
    follow("evaluate the run again", lambda folder: spoilt_result(folder, arm=3), evaluated),
    follow("evaluate the run again", spoilt_predictions, evaluated),
    # export_onnx.py
    follow(
        "allow it with a larger tolerance, or report this",
        lambda folder: exported(folder, 1e-9),
        lambda folder: exported(folder, 10),
    ),
    # model_file.py
    follow("256 and 224", lambda: Preprocessing(resize=256.0), lambda: Preprocessing(resize=256, size=224).size == 224),
    follow(
        "of red, green and blue",
        lambda: Preprocessing(mean=(0.5,)),
        lambda: Preprocessing(mean=(0.5, 0.5, 0.5)).mean == (0.5, 0.5, 0.5),
    ),
    follow(REMEDY, lambda folder: loads(folder / "none.pt"), *LOADED),
    follow(REMEDY, loads, *LOADED),
    follow(REMEDY, lambda folder: other(folder, format=99), *LOADED),
    follow(REMEDY, lambda folder: other(folder, state={}), *LOADED),
    follow(
        f"{REMEDY}, with config.yaml beside checkpoints/",
        without_config,
        *LOADED,
        lambda folder: without_config(folder, beside=True),
    ),
    follow(
        "use the version of adaptive-margin that wrote it, which a model file names under versions",
        of_another_version,
        lambda folder: re.match(r"\d+\.\d+", model_details(folder / "model.pt")["versions"]["adaptive_margin"]),
    ),
    follow(
        "pass one of them, as in --checkpoint ",
        lambda folder: loads(several(folder)),
        lambda folder: loads(several(folder) / "runs" / "caf" / "seed0"),
    ),
    # export_hub.py
    follow(
        "pass another folder",
        lambda folder: hub(folder, "run"),
        lambda folder: hub(folder, "hub"),
    ),
    follow(
        "pass another folder",
        lambda folder: hub(folder, "others", {"config.json": "{}"}),
        lambda folder: hub(folder, "another"),
    ),
    follow(
        "pass another folder, or --overwrite (overwrite=True)",
        lambda folder: hub(folder, "hub") and hub(folder, "hub"),
        lambda folder: hub(folder, "another"),
        lambda folder: hub(folder, "hub", overwrite=True),
    ),
    # detect.py, predict.py
    follow(
        "enlarge the pictures: no detector here finds smaller faces",
        lambda: face_detector(min_face=12),
        lambda: isinstance(face_detector(min_face=24)(np.full((96, 96, 3), 120, np.uint8).repeat(2, 0)), list),
    ),
    follow(
        "open it with np.asarray(read_image(path))",
        lambda folder: detected(folder, array=False),
        lambda folder: detected(folder, array=True),
    ),
    follow(
        "1.5 of the detector's box is usual",
        lambda: Predictor(net(), HOW, margin=0),
        lambda: Predictor(net(), HOW, margin=1.5).margin == 1.5,
    ),
    follow(
        "train one with --person-norm, or leave --same-person (same_person) out",
        lambda: by_person(False),
        lambda: by_person(True),
        lambda folder: predicted(pictures(folder), folder / "out"),
    ),
    follow(
        "pass an image, a video, or a folder of them",
        lambda folder: predicted(folder / "none.png", folder / "out"),
        lambda folder: predicted(pictures(folder), folder / "out"),
        lambda folder: predicted(folder / "in", folder / "another"),
    ),
    follow(
        "pass an image, a video, or a folder of them",
        lambda folder: predicted([], folder / "out"),
        lambda folder: predicted([pictures(folder)], folder / "out"),
    ),
    follow(
        "16 is the default",
        lambda folder: predicted(pictures(folder), folder / "out", batch_size=0),
        lambda folder: predicted(folder / "in", folder / "out", batch_size=16),
    ),
    follow(
        "pass --output DIR",
        lambda folder: predicted(pictures(folder).parent, folder / "in"),
        lambda folder: predicted(folder / "in", folder / "out"),
    ),
    follow(
        "check it, or convert them",
        texts,
        lambda folder: list(find_files(pictures(folder).parent, folder / "out")) == [folder / "in" / "face.png"],
    ),
    follow(
        "pass --output DIR with another folder",
        lambda folder: predicted(pictures(folder), folder / "in"),
        lambda folder: predicted(folder / "in" / "face.png", folder / "out"),
    ),
    follow(
        "remove the link, or pass another --output",
        linked,
        lambda folder: linked(folder, "another"),
        lambda folder: linked(folder, unlink=True),
    ),
    follow(
        "pass another --output, or --overwrite (overwrite=True) to replace files",
        twice,
        lambda folder: predicted(folder / "in", folder / "another"),
        lambda folder: predicted(folder / "in", folder / "out", overwrite=True),
    ),
    # runs.py
    follow(
        "pass the --output of benchmarks/fer_caf.py",
        lambda folder: read_runs(folder / "none"),
        lambda folder: arms(run_of(folder)) == 1,
    ),
    follow(
        "pass the --output of a run",
        lambda folder: read_runs(folder),
        lambda folder: arms(run_of(folder) / "caf" / "seed0") == 1,
    ),
    # the arms that use people
    follow(
        "leave cross_person out, or choose the critic caf",
        lambda: config(critic="none", cross_person=True),
        lambda: config(critic="none"),
        lambda: config(critic="caf", cross_person=True),
    ),
    follow(
        "a batch holds whole groups of a person's pictures",
        lambda: config(batch_size=10, per_person=4),
        lambda: config(batch_size=12, per_person=4),
    ),
    follow(
        "pass one for each row",
        lambda: crossed(None),
        lambda: crossed(torch.arange(3)) >= 0,
    ),
    follow(
        "1 is the default",
        lambda: build_term("grl", 4, 2, weight=-1.0),
        lambda: build_term("grl", 4, 2, weight=1.0).weight == 1,
    ),
    follow(
        "pass the number of each row's person, from 0",
        lambda: iteration(term="grl").paper_step(*faces()),
        lambda: "term" in iteration(term="grl").paper_step(*faces(), who()),
    ),
    follow(
        "use faces, afew-va, aff-wild or aff-wild2, or leave it out",
        lambda: people_of(config_of(term="elim"), strangers(), World()),
        lambda: len(people_of(config_of(term="elim"), load_data(config_of()).train, World())) == 60,
        lambda: people_of(config_of(), strangers(), World()) is None,
    ),
    follow(
        "use faces, afew-va, aff-wild or aff-wild2, or leave per_person out",
        lambda: config(dataset="affectnet", root="x", per_person=4),
        lambda: config(dataset="faces", per_person=4),
        *(
            lambda name=name: config(dataset=name, root="x", per_person=4)
            for name in ("afew-va", "aff-wild", "aff-wild2")
        ),
        lambda: config(dataset="affectnet", root="x"),
    ),
    follow(
        "pass person_norm, too, or leave person_scale out",
        lambda: config(person_scale=True),
        lambda: config(person_scale=True, person_norm=True),
        lambda: config(),
    ),
    follow(
        "leave it out, or pass cross_person, person_norm, per_person or a term that does: grl, uniform-id, elim",
        lambda: config(shuffle_people=True),
        lambda: config(),
        lambda: config(shuffle_people=True, cross_person=True),
        lambda: config(shuffle_people=True, person_norm=True),
        lambda: config(shuffle_people=True, per_person=4),
        lambda: config(shuffle_people=True, term="grl"),
        lambda: config(shuffle_people=True, term="uniform-id"),
        lambda: config(shuffle_people=True, term="elim"),
    ),
    follow(
        "train person_norm and elim with one process",
        lambda: people_of(config_of(person_norm=True), strangers(known=True), World(rank=0, size=2)),
        lambda: len(people_of(config_of(person_norm=True), strangers(known=True), World())) == 4,
    ),
]
