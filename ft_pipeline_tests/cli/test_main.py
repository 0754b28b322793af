"""The command line itself: help, unknown commands, completion, errors without a traceback."""

from __future__ import annotations

import subprocess
import sys

import pytest

from ft_pipeline.cli.main import COMMANDS, main
from ft_pipeline_tests import road


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_explains_itself(typed, command):
    answer = typed(command, "--help")
    assert answer.code == 0
    assert answer.out.startswith(f"Usage: ft-pipeline {command}") and len(answer.out.splitlines()) > 4


def test_help_lists_every_command_and_the_exit_codes(typed):
    answer = typed("--help")
    assert answer.code == 0
    assert [name for name in COMMANDS if f"\n  {name} " not in answer.out] == []
    assert "75 stopped after a checkpoint" in answer.out


def test_no_words_at_all_show_the_help(typed):
    answer = typed()
    assert answer.code in (0, 2) and "Commands:" in answer.out + answer.err


def test_version(typed):
    assert typed("--version").out.strip().endswith("0.1.0")


def test_an_unknown_command_gets_the_nearest_name(typed):
    answer = typed("pln", "router")
    assert answer.code == 2 and "did you mean plan?" in answer.err


def test_a_missing_argument_and_an_unknown_option_exit_2(typed):
    assert typed("plan").code == 2
    assert typed("models", "--jsn").code == 2


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_completion_prints_a_script_for_the_shell(typed, shell):
    answer = typed("completion", shell)
    assert answer.code == 0 and "_FT_PIPELINE_COMPLETE" in answer.out


@pytest.mark.parametrize(("words", "expected"), [("plan rou", "router"), ("ver", "verify")])
def test_tab_completes_commands_and_recipes(home, words, expected):
    road.write_recipe(home.home)
    number = {"COMP_WORDS": f"ft-pipeline {words}", "COMP_CWORD": str(len(words.split()))}
    answer = road.call(home.home, _FT_PIPELINE_COMPLETE="bash_complete", **number)
    assert f"plain,{expected}" in answer.stdout.split()


@pytest.mark.parametrize("name", ["FT_THREADS", "FT_SERVE_PORT"])
def test_a_setting_that_is_no_number_is_named(typed, monkeypatch, name):
    monkeypatch.setenv(name, "two")
    answer = typed("recipes")
    assert answer.code == 2 and f"{name} is 'two'" in answer.err and "Cure:" in answer.err


def test_a_store_of_an_unknown_kind_is_refused(typed, monkeypatch):
    monkeypatch.setenv("FT_STORE", "gs://bucket")
    answer = typed("models")
    assert answer.code == 2 and "FT_STORE names gs://bucket" in answer.err


def test_help_loads_neither_dagster_nor_torch():
    code = (
        "import sys; sys.argv = ['ft-pipeline', '--help']; from ft_pipeline.cli import main\n"
        "try: main.main()\nexcept SystemExit: pass\n"
        "print([m for m in ('dagster', 'torch', 'sqlalchemy', 'pydantic') if m in sys.modules])"
    )
    ended = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert ended.stdout.splitlines()[-1] == "[]"


def test_ctrl_c_before_anything_began_exits_130(monkeypatch, capsys):
    from ft_pipeline.cli import main as module

    def interrupted(**_options):
        raise KeyboardInterrupt

    monkeypatch.setattr(module.cli, "main", interrupted)
    with pytest.raises(SystemExit) as stop:
        main()
    assert stop.value.code == 130 and "Traceback" not in capsys.readouterr().err
