"""What `torchx run` would launch."""

import inspect
import re
import subprocess
from pathlib import Path

import pytest
from torchx.components.component_test_base import ComponentTestCase
from torchx.runner import get_runner
from torchx.specs.finder import get_components

from tests.jobs import funnel
from torchrec_mtl import components
from torchrec_mtl.jobs.datasets import DATASETS
from torchrec_mtl.jobs.launch import processes_a_node
from torchrec_mtl.systems import SYSTEMS

ROOT = Path(__file__).parents[1]
NODES = ["-j", "2x8", "--cpu", "64", "--gpu", "8", "--memMB", "500000"]
JOB = [*NODES, "--name", "first", "--models", "tafe", "--dataset", "/shared/data", "--output", "/shared/runs"]
JOB += ["--max_restarts", "3", "--max_retries", "2", "--mounts", "type=bind,src=/shared,dst=/shared"]
OVERRIDE = "tafe.model_args.num_layers=2"
PROGRAM = "-m torchrec_mtl train --models tafe --dataset /shared/data --reader auto --raw '' --settings ''"
PROGRAM += f" --metrics auc --trackers tensorboard --seed 0 --name first --output /shared/runs --timeout 600 {OVERRIDE}"
ENVIRONMENT = {
    "OMP_NUM_THREADS": "8",
    "PET_MAX_RESTARTS": "3",
    "TORCH_DISABLE_SHARE_RDZV_TCP_STORE": "1",
    "MALLOC_MMAP_THRESHOLD_": "4294967296",
    "THP_MEM_ALLOC_ENABLE": "1",
    "MALLOC_TRIM_THRESHOLD_": "4294967296",
}


class TestComponents(ComponentTestCase):
    def test_each_is_a_valid_component(self):
        for name in ("train", "compare", "prepare", "evaluate", "predict", "calibrate", "export", "bench"):
            self.validate(components, name)


@pytest.fixture(autouse=True)
def nothing_set_for_the_network(monkeypatch):
    monkeypatch.chdir(ROOT)  # where benchmarks/ is
    monkeypatch.delenv("NCCL_SOCKET_IFNAME", raising=False)


def dryrun(component, *arguments, scheduler="local_cwd", **settings):
    with get_runner() as runner:
        return runner.dryrun_component(component, list(arguments), scheduler, settings).request


def only_replica(request):
    ((replica,),) = request.role_params.values()
    return replica


def torchrun_of(command, host):
    """The words of torchrun's command before the program, checked against where the nodes meet."""
    options, program = re.fullmatch(r"(.*) (-m torchrec_mtl train .*)", command).groups()
    assert program == PROGRAM
    assert f"--rdzv_endpoint ${{{host}:=localhost}}:29500 " in options
    assert "--rdzv_backend c10d" in options
    assert "--nnodes 2 --nproc_per_node 8" in options
    return options


def test_ours_are_found_and_torchxs_own_stay():
    assert {"mtl.train", "mtl.compare", "mtl.prepare", "mtl.bench", "dist.ddp", "utils.sh"} <= set(get_components())


def test_train_is_torchruns_on_one_machine():
    replica = only_replica(dryrun("mtl.train", "-j", "1x2", "--cpu", "4", "--models", "tafe", OVERRIDE))
    (_, command) = replica.args[1:]
    assert command.startswith("torchrun --rdzv_backend c10d --rdzv_endpoint localhost:0 ")
    assert "--nnodes 1 --nproc_per_node 2" in command
    assert re.search(
        rf"--models tafe .* --name \d{{4}}-\d\d-\d\d_\d\d-\d\d-\d\d --output runs --timeout 600 {OVERRIDE}$", command
    )
    assert replica.env["OMP_NUM_THREADS"] == "2"
    assert replica.env["PET_MAX_RESTARTS"] == "0"


def test_fewest_and_most_nodes():
    requests = dryrun("mtl.train", "-j", "1:2x4", "--models", "tafe")
    (replicas,) = requests.role_params.values()
    assert ["--nnodes 1:2 --nproc_per_node 4" in replica.args[-1] for replica in replicas] == [True, True]


def test_two_nodes_under_slurm():
    request = dryrun("mtl.train", *JOB, OVERRIDE, scheduler="slurm", partition="gpu", time="24:00:00")
    assert request.max_retries == 2
    assert list(request.replicas) == ["train-0", "train-1"]
    for replica in request.replicas.values():
        asked = {"ntasks-per-node": "1", "cpus-per-task": "64", "mem": "500000", "gpus-per-task": "8"}
        assert asked.items() <= replica.sbatch_opts.items()
        assert {"partition": "gpu", "time": "24:00:00"}.items() <= replica.sbatch_opts.items()
        assert ENVIRONMENT.items() <= replica.env.items()
        assert replica.entrypoint == "bash"
        assert torchrun_of(replica.args[-1], "SLURM_JOB_NODELIST_HET_GROUP_0").startswith("torchrun ")
    script = request.materialize()
    assert script.count("#SBATCH --job-name=train-") == 2
    assert script.count("#SBATCH hetjob") == 1
    assert 'scontrol requeue "$SLURM_JOB_ID"' in script
    assert script.count("PET_MAX_RESTARTS=3,TORCH_DISABLE_SHARE_RDZV_TCP_STORE=1") == 2
    assert subprocess.run(["bash", "-n"], input=script, text=True, check=False).returncode == 0


def test_two_nodes_under_kubernetes():
    pytest.importorskip("kubernetes")
    with pytest.warns(UserWarning, match="configured with restarts: 2"):
        job = dryrun("mtl.train", *JOB, OVERRIDE, scheduler="kubernetes", queue="default").resource
    assert (job["apiVersion"], job["kind"]) == ("batch.volcano.sh/v1alpha1", "Job")
    assert (job["spec"]["queue"], job["spec"]["maxRetry"]) == ("default", 2)
    assert [task["name"] for task in job["spec"]["tasks"]] == ["train-0", "train-1"]
    for task, host in zip(job["spec"]["tasks"], ("TORCHX_RANK0_HOST", "VC_TRAIN_0_HOSTS"), strict=True):
        pod = task["template"].spec
        (container,) = pod.containers
        assert container.image == components.IMAGE
        assert container.command[:2] == ["bash", "-c"]
        torchrun_of(container.command[2], host)
        limits = {"cpu": "64000m", "memory": "500000M", "nvidia.com/gpu": "8"}
        assert container.resources.limits == limits
        assert ENVIRONMENT.items() <= {variable.name: variable.value for variable in container.env}.items()
        assert [port.container_port for port in container.ports] == [29500]
        assert [mount.mount_path for mount in container.volume_mounts] == ["/dev/shm", "/shared"]
        assert [volume.host_path.path for volume in pod.volumes if volume.host_path] == ["/shared"]


@pytest.mark.parametrize("scheduler", ["local_docker", "slurm"])
def test_network_settings_are_taken_over_whole(monkeypatch, scheduler):
    monkeypatch.setenv("NCCL_SOCKET_IFNAME", "eth0,eth1")
    monkeypatch.setenv("PET_RDZV_CONF", "join_timeout=60,last_call_timeout=$5")
    request = dryrun("mtl.train", *JOB, scheduler=scheduler)
    if scheduler == "slurm":
        commands = [replica.args[-1] for replica in request.replicas.values()]
    else:
        commands = [container.command[-1] for container in request.containers]
        assert [c.image for c in request.containers] == [components.IMAGE] * 2
    for command in commands:
        prefix = "env NCCL_SOCKET_IFNAME=eth0,eth1 'PET_RDZV_CONF=join_timeout=60,last_call_timeout=$5' torchrun "
        assert command.startswith(prefix)


def test_compare_runs_one_system_a_gpu_or_core():
    options = ["--models", "mmoe,tafe", "--seeds", "2", "training.max_epochs=1"]
    for resources, workers in ((["--cpu", "6"], "6"), (["--gpu", "4"], "4"), (["--workers", "3"], "3")):
        replica = only_replica(dryrun("mtl.compare", *resources, *options))
        assert replica.args[:4] == ["python", "-m", "torchrec_mtl", "compare"]
        assert replica.args[replica.args.index("--workers") + 1] == workers
        assert replica.args[replica.args.index("--models") + 1] == "mmoe,tafe"
        assert replica.args[-1] == "training.max_epochs=1"


def test_prepare_passes_a_data_sets_own_arguments_on():
    options = ["--dataset", "ali_ccp", "--raw", "/raw", "--output", "/out", "--bad_rows", "strict"]
    replica = only_replica(dryrun("mtl.prepare", *options, "--", "--sample", "0.1"))
    command = "python -m torchrec_mtl prepare ali_ccp --raw /raw --output /out --bad-rows strict --sample 0.1"
    assert replica.args == command.split()


@pytest.mark.parametrize("component", ["train", "compare", "prepare"])
def test_redact_is_passed_on(component):
    needed = ["--dataset", "ali_ccp", "--raw", "/raw", "--output", "/out"] if component == "prepare" else []
    for given in ([], ["--redact", "True"]):
        replica = only_replica(dryrun(f"mtl.{component}", *needed, *given))
        assert (" --redact" in " ".join(replica.args)) == bool(given)


def test_days_are_passed_on():
    given = ["--days", "2026-11-01..2026-11-07", "--bounds", "least_auc=0.6", "--skip_days", "2026-11-03"]
    replica = only_replica(dryrun("mtl.train", "--models", "tafe", "--dataset", "/shared/shop.py", *given))
    passed = "--days 2026-11-01..2026-11-07 --bounds least_auc=0.6 --skip-days 2026-11-03"
    assert passed in " ".join(replica.args)


@pytest.mark.parametrize("program", ["peers", "scaling", "embedding_throughput"])  # the last, a package
def test_bench_runs_a_program_with_its_arguments(program):
    replica = only_replica(dryrun("mtl.bench", "--program", program, "--", "--help"))
    assert replica.args == ["python", "-m", f"benchmarks.{program}", "--help"]


WRONG = [
    (components.train, {"sample": 0.0}, "`sample` (=0.0) must be above 0 and at most 1"),
    (components.compare, {"sample": 1.5}, "`sample` (=1.5) must be above 0 and at most 1"),
    (components.train, {"max_restarts": -1}, "`max_restarts` (=-1) must be at least 0"),
    (components.train, {"rdzv_port": 0}, "`rdzv_port` (=0) must be from 1 to 65535"),
    (components.train, {"rdzv_port": 65536}, "`rdzv_port` (=65536) must be from 1 to 65535"),
    (components.train, {"seed": 2**63}, "`seed` (=9223372036854775808) must be at most 2147483647"),
    (components.train, {"j": "1x3"}, "`batch_size` (=1024) must be a multiple of the number of processes"),
    (components.train, {"models": "esmmm"}, "model 'esmmm' must be one of"),
    (components.train, {"j": "2by8"}, "`j` (='2by8') must be nodes x processes a node, as 2x8"),
    (components.train, {"j": "2:1x8"}, "`j` (='2:1x8') must be nodes x processes a node, as 2x8"),
    (components.train, {"j": "1x8", "gpu": 4}, "`j` (='1x8') must be for at most `gpu` (=4) processes a node"),
    (components.train, {"mounts": "src=/a,dst=/b"}, "`mounts` (='src=/a,dst=/b') must be as type=bind,"),
    (components.compare, {"protocol": "papers"}, "protocol 'papers' must be one of"),
    (components.compare, {"seeds": 0}, "`seeds` (=0) must be at least 1"),
    (components.compare, {"stages": "find"}, "stage 'find' must be one of"),
    (components.bench, {"program": "speed"}, "`program` (='speed') must be one of "),
    (
        components.bench,
        {"program": "embedding_throughput.__main__"},
        "`program` (='embedding_throughput.__main__')",
    ),
    (
        components.bench,
        {"program": "embedding_throughput.measure"},
        "`program` (='embedding_throughput.measure') must be",
    ),
]


@pytest.mark.parametrize(("component", "arguments", "sentence"), WRONG)
def test_a_wrong_argument_is_told_before_anything_is_launched(capsys, component, arguments, sentence):
    with pytest.raises(SystemExit) as exit_status:
        component(**arguments)
    assert exit_status.value.code == 2
    assert capsys.readouterr().err.startswith(f"error: {sentence}")


def test_a_wrong_argument_of_prepare_is_told_by_its_program(capsys):
    with pytest.raises(SystemExit) as exit_status:
        components.prepare("--sample", "0", dataset="ali_ccp", raw="/raw", output="/out")
    assert exit_status.value.code == 2
    assert capsys.readouterr().err == "error: `sample` (=0.0) must be above 0 and at most 1\n"
    with pytest.raises(SystemExit) as exit_status:
        components.prepare(dataset="ali_ccp", raw="/raw", output="/out", protocol="itma")
    assert exit_status.value.code == 2
    assert capsys.readouterr().err == "error: `protocol` (='itma') must be one of 'aitm', 'full'\n"


NEEDED = {"prepare": {"dataset": "ali_ccp", "raw": "a", "output": "b"}, "bench": {"program": "peers"}}
RESOURCES = [("cpu", 0, 1), ("cpu", -1, 1), ("memMB", 0, 1), ("gpu", -1, 0), ("max_retries", -1, 0)]


@pytest.mark.parametrize("component", ["train", "compare", "prepare", "bench"])
@pytest.mark.parametrize(("name", "value", "least"), RESOURCES)
def test_impossible_resources_are_told_by_every_component(capsys, component, name, value, least):
    function = getattr(components, component)
    if name not in inspect.signature(function).parameters:
        pytest.skip(f"{component} has no {name}")
    with pytest.raises(SystemExit) as exit_status:
        function(**NEEDED.get(component, {}), **{name: value})
    assert exit_status.value.code == 2
    told = capsys.readouterr().err
    assert told.startswith(f"error: `{name}` (={value}) must be at least {least}")


WRONG = [
    ("tafe.model_args.dropout=3.0", "`dropout` (=3.0) must be from 0 to 1"),
    ("tafe.model_args.num_inducing_points=0", "`num_inducing_points` (=0) must be at least 1"),
    ("shared_bottom.model_args.tower_layer_sizes=[0]", "`tower_layer_sizes` (=[0]) must be widths"),
    ("single_task.model_args.dropout=-1.0", "`dropout` (=-1.0) must be from 0 to 1"),
]
UNSEEN = [*DATASETS, "/not/here/yet"]


@pytest.mark.parametrize("component", [components.train, components.compare])
@pytest.mark.parametrize("where", [*UNSEEN, "folder"])
def test_wrong_arguments_of_a_model_are_told_before_anything_is_launched(tmp_path, capsys, where, component):
    dataset = where if where != "folder" else str(funnel.prepare(tmp_path / "data"))
    for override, sentence in WRONG:
        model = override.partition(".")[0]
        if (model, dataset) == ("tafe", "taobao"):
            continue  # of one task, which TAFE's loss does not support
        options = {"dataset": dataset} if component is components.train else {"datasets": dataset, "protocol": "paper"}
        with pytest.raises(SystemExit) as exit_status:
            component(override, models=model, **options)
        assert exit_status.value.code == 2
        assert capsys.readouterr().err.startswith(f"error: {sentence}")


@pytest.mark.parametrize("component", [components.train, components.compare])
def test_a_table_that_is_not_there_is_told_before_anything_is_launched(tmp_path, capsys, component):
    dataset = str(funnel.prepare(tmp_path / "data"))
    options = {"dataset": dataset} if component is components.train else {"datasets": dataset, "protocol": "paper"}
    with pytest.raises(SystemExit):
        component("training.tables.t_usr.sharding=row_wise", models="tafe", **options)
    told = capsys.readouterr().err
    assert told == "error: `tables` (='t_usr') must be of the model's: ['t_item', 't_tags', 't_user']\n"


@pytest.mark.parametrize("dataset", UNSEEN)
@pytest.mark.parametrize("system", SYSTEMS)
def test_only_data_without_a_second_task_are_refused_with_any_default(capsys, dataset, system):
    try:
        components.train(models=system, dataset=dataset)
    except SystemExit:
        told = capsys.readouterr().err
        assert (dataset, "after" in told) == ("taobao", True), told


@pytest.mark.parametrize("count", [1, 2, 5, 30])
def test_as_many_task_weights_as_there_may_be_tasks_are_taken(count):
    weights = f"loss_args.task_weights={[1.0] * count}"
    components.train(weights, models="shared_bottom", dataset="/not/here/yet")


@pytest.mark.parametrize("system", SYSTEMS)
def test_no_system_is_refused_with_the_settings_of_the_default_data_set(system):
    components.train(models=system)


@pytest.mark.parametrize("component", [components.train, components.compare])
def test_a_wrong_override_is_told_too(capsys, component):
    with pytest.raises(SystemExit) as exit_status:
        component("training.epochs=3")
    assert exit_status.value.code == 2
    assert capsys.readouterr().err.startswith("error: single_task has no setting 'training.epochs'")


@pytest.mark.parametrize("j", ["", "x2", "0x2", "1x0", "2x", "-1x2", "1:2", "1x2x3"])
def test_malformed_nodes_and_processes_are_refused(j):
    with pytest.raises(ValueError, match="must be nodes x processes"):
        processes_a_node(j, gpu=0)


def test_jobs_with_a_trained_run_get_their_options():
    for job, options in {
        "evaluate": ["--dataset", "data", "--", "--by", "week"],
        "predict": ["--input", "rows", "--output", "scores.parquet", "--", "--values", "click=1"],
        "calibrate": ["--dataset", "data", "--method", "platt"],
        "export": ["--dataset", "data", "--output", "package", "--table_type", "fp16"],
    }.items():
        ranks = [] if job == "export" else ["-j", "1x2"]
        command = only_replica(dryrun(f"mtl.{job}", "--run", "runs/first", *ranks, *options))
        last = re.escape(" ".join(options[-2:]).replace("_", "-"))
        assert re.search(rf"-m torchrec_mtl {job} runs/first .*{last}", " ".join(command.args))


def test_a_wrong_option_of_a_job_with_a_trained_run_ends_with_status_2(capsys):
    with pytest.raises(SystemExit) as ended:
        dryrun("mtl.calibrate", "--run", "runs/first", "--dataset", "data", "--method", "isotonics")
    assert ended.value.code == 2
    assert "isotonics" in capsys.readouterr().err
