"""Shell scripts read as data, held against the shell itself: what bash would pass on, without running anything."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from moeplan.errors import PlanError
from moeplan.importers.shell import read_script
from moeplan.importers.shell_words import arithmetic, is_unknown

BASH = shutil.which("bash")

SCRIPTS = {
    "arrays": r"""
        TP=2
        ARGS=(
            --num-layers 12   # a comment with (brackets) and 'quotes'
            --moe-layer-freq '([0]*3+[1]*9)'
            --layout "Et*3|(tt|)*6mL" --name "two words" --empty ""
            --tp $TP --path a\ b
        )
        ARGS+=( --bf16 )
        torchrun --nnodes 2 pretrain_gpt.py "${ARGS[@]}" ${ARGS[0]}
    """,
    "strings": r"""
        TP=4
        PP=${2:-8}
        GPUS=$((TP * PP / 2 - 1))
        OPTIONS=" \
            --tensor-model-parallel-size ${TP} \
            --pipeline-model-parallel-size $PP \
            --gpus $GPUS
            --unset ${NOTHING:-fallback} ${NOTHING-} ${TP:+given}"
        torchrun pretrain_gpt.py $OPTIONS "$OPTIONS" '$TP' "\$TP \\ \"q\"" \$TP
    """,
    "conditions": r"""
        SIZE=big
        if [ "$SIZE" = small ]; then L=1
        elif [[ $SIZE == b* ]] && [ 3 -gt 2 ]; then
            L=2
            if [ -n "" ]; then L=7; else M=5; fi
        else
            L=3
        fi
        [ -z "${UNSET:-}" ] && N=11
        [ "$L" -eq 9 ] && N=99
        [ "$L" -ne 2 ] || O=4
        case $SIZE in
            small) P=1 ;;
            huge | b?g) P=2; Q=3 ;;
            *) P=4 ;;
        esac
        if ! [ "$L" = 2 ]; then N=0; fi
        torchrun a.py --l $L --m $M --n $N --o $O --p $P --q $Q
    """,
    "functions and loops": r"""
        launch() {
            local EXTRA="--extra 1"
            torchrun a.py $COMMON $EXTRA > out.log 2>&1 || exit 1
        }
        COMMON="--common 2"
        launch
        for TP in 4; do torchrun b.py --tp $TP; done
        bash -c "torchrun c.py --x ${COMMON} --y 'a b'"
    """,
    "words within words": r"""
        LIST=()
        if [[ "x" == "x" ]] || [[ -z "$NOBODY" ]]; then LIST+=("--format hybrid" "--split '9,1'" --last); fi
        torchrun a.py ${LIST[@]} "${LIST[@]}"
        LATER="--freq '([0]*2+[1]*2)' --n $(( (3 > 2) ? 7 : 8 ))"
        run="torchrun b.py ${LATER}"
        eval $run
        torchrun c.py $LATER
    """,
    "here documents": r"""
        A=5
        cat > /dev/null <<EOF
        torchrun not.py --never $A
EOF
        bash <<EOF
torchrun d.py --a $A
EOF
        X=1 torchrun e.py --pre$A "$A"'b'c
    """,
}


def passed_on(script: str, folder: Path) -> list[list[str]]:
    """The words that bash gives to torchrun, in order of its calls."""
    recorder = folder / "torchrun"
    recorder.write_text('#!/bin/sh\nprintf "%s\\0" "$@" >> "$RECORD"\nprintf "\\036" >> "$RECORD"\n')
    recorder.chmod(0o755)
    record = folder / "record"
    record.touch()
    environment = {"PATH": f"{folder}:/usr/bin:/bin", "RECORD": str(record)}
    subprocess.run([str(BASH), "-c", script], check=True, env=environment, cwd=folder, capture_output=True)
    return [call.split("\0")[:-1] for call in record.read_text().split("\x1e")[:-1]]


@pytest.mark.skipif(BASH is None, reason="there is no bash here")
@pytest.mark.parametrize("name", SCRIPTS)
def test_words_are_those_that_bash_passes_on(name: str, tmp_path: Path) -> None:
    expected = passed_on(SCRIPTS[name], tmp_path)
    script = read_script(SCRIPTS[name])
    found = [words[1:] for words in script.commands if words[0] == "torchrun"]
    assert found == expected
    assert found  # a script whose commands are all lost would agree with nothing


@pytest.mark.skipif(BASH is None, reason="there is no bash here")
@given(st.lists(st.text(alphabet="ab $\\\"'-{}X:;|&()#~*", max_size=12), max_size=4))
def test_quoted_words_survive_as_bash_quotes_them(words: list[str]) -> None:
    """shlex.quote is what bash reads back; so must we."""
    import shlex

    line = "torchrun " + " ".join(shlex.quote(word) for word in words)
    assert read_script(line).commands == [["torchrun", *words]]


@given(st.integers(-50, 50), st.integers(-50, 50).filter(bool), st.sampled_from("+-*/%"))
def test_arithmetic_is_that_of_the_shell(left: int, right: int, operator: str) -> None:
    """Shells divide towards zero, and a remainder has the sign of the dividend (C, and POSIX after it)."""
    quotient = abs(left) // abs(right) * (1 if (left < 0) == (right < 0) else -1)
    expected = {
        "+": left + right,
        "-": left - right,
        "*": left * right,
        "/": quotient,
        "%": left - right * quotient,
    }[operator]
    assert arithmetic(f"{left} {operator} ({right})", {}) == str(expected)


def test_nothing_is_run(tmp_path: Path) -> None:
    marker = tmp_path / "marker"
    script = read_script(f"A=$(touch {marker})\nB=`touch {marker}`\ntouch {marker}\ntorchrun x.py --a $A --b ${{C}} $B")
    assert not marker.exists()
    words = script.commands[-1]
    assert is_unknown(words[words.index("--a") + 1])


def test_what_was_not_followed_is_said() -> None:
    script = read_script("for x in 1 2; do torchrun a.py --x $x; done\nif [ -f /etc/passwd ]; then A=1; fi")
    assert [words for words in script.commands if words[0] == "torchrun"] == [["torchrun", "a.py", "--x", "1"]]
    assert any("first value" in note for note in script.notes)
    assert any("does not decide" in note for note in script.notes)


@given(st.text(alphabet="aA=$(){}[]'\"`\\\n <>|&;#!*x1-", max_size=60))
def test_no_text_breaks_the_reader(text: str) -> None:
    try:
        read_script(text)
    except PlanError as error:
        assert "\n" not in str(error)


def test_variables_that_feed_on_themselves_are_refused() -> None:
    lines = ["X=aaaaaaaaaaaaaaaa", *(["X=$X$X$X$X"] * 12), "torchrun $X"]
    with pytest.raises(PlanError, match="1 MiB"):
        read_script("\n".join(lines))
