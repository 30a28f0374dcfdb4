"""Reward `language`: thinking in one language, in another, and mixed."""

import pytest

from verifier.rewards.language import language_reward, load, thinking
from verifier.rewards.score import BadAnswer, BadTask

TEXTS = {
    "en": "Let us compute the sum of the two numbers first. We carry the one. So the result is 42. "
    "Wait, that is wrong; let me check it again. Yes, the answer must be 17, because the remainder is zero.",
    "de": "Zuerst berechnen wir die Summe der beiden Zahlen. Wir übertragen die Eins. Das Ergebnis ist also 42. "
    "Moment, das stimmt nicht, ich prüfe es noch einmal.",
    "fr": "Calculons d'abord la somme des deux nombres. On retient un. Le résultat est donc 42. "
    "Attendez, ce n'est pas correct, vérifions encore une fois.",
    "es": "Primero calculamos la suma de los dos números. Llevamos una. Entonces el resultado es 42. "
    "Espera, eso no es correcto, vamos a comprobarlo otra vez.",
    "zh": "首先我们计算两个数的和。进一位。所以结果是42。等一下，这不对，让我再检查一遍。",
    "ja": "まず二つの数の和を計算します。一を繰り上げます。したがって結果は42です。待って、これは間違いです。",
    "ru": "Сначала вычислим сумму двух чисел. Переносим единицу. Значит, результат равен 42. Подожди, это неверно.",
    "uk": "Спочатку обчислимо суму двох чисел. Переносимо одиницю. Отже, результат дорівнює 42. Зачекай, це не так.",
    "ko": "먼저 두 수의 합을 계산합니다. 일을 올립니다. 따라서 결과는 42입니다. 잠깐, 이것은 틀렸습니다.",
}


def share(text: str, target: str, **parameters: object) -> float:
    return language_reward(text, "", {"language": {"target": target, **parameters}}).value


@pytest.mark.parametrize("target", TEXTS)
def test_a_text_is_wholly_in_its_own_language_and_in_no_other(target: str) -> None:
    load()
    assert {code: share(text, target) for code, text in TEXTS.items()} == {
        code: float(code == target) for code in TEXTS
    }


def test_words_of_another_script_are_counted_one_by_one() -> None:
    assert share("The user asks how to say 安全 in the letter.", "en") == pytest.approx(9 / 11)
    assert share("我们需要 check 这个 answer 的值。", "zh") == pytest.approx(8 / 10)


def test_a_mixed_text_is_worth_about_its_share() -> None:
    english, chinese = TEXTS["en"] * 3, TEXTS["zh"] * 3
    assert 0.3 < share(english + chinese, "en") < 0.6
    assert 0.4 < share(english + chinese, "zh") < 0.7
    assert 0.4 < share(TEXTS["en"] * 4 + TEXTS["de"] * 4, "en") < 0.7


def test_formulas_code_numbers_and_tags_are_no_words() -> None:
    formulas = "<think> $\\text{das ist ein Satz}$ \\(ein weiterer\\) 3+4=7 `noch einer hier` \\alpha x y z </think>"
    with pytest.raises(BadAnswer, match="no words"):
        share(formulas, "en")
    assert share(f"{formulas[:-8]} and so we are done with it</think>", "en") == 1.0


@pytest.mark.parametrize(
    ("text", "part"),
    [
        ("<think>{en}</think>{zh}", "{en}"),
        ("{en}</think>{zh}", "{en}"),
        ("<think>{en}", "{en}"),
        ("{en}", "{en}"),
        ("{zh}<think>{en}</think>{zh}<think>{zh}</think>", "{en}"),
    ],
)
def test_the_thinking_is_what_is_judged(text: str, part: str) -> None:
    text, part = text.format(**TEXTS), part.format(**TEXTS)
    assert thinking(text) == part
    assert share(text, "en") == 1.0


def test_all_of_the_text_is_judged_when_the_task_says_so() -> None:
    text = f"<think>{TEXTS['en']}</think><answer>{TEXTS['zh']}</answer>"
    assert share(text, "en") == 1.0
    assert share(text, "en", of="all") < 0.6


@pytest.mark.parametrize(
    ("parameters", "culprit"),
    [
        ({}, "metadata.language.target is missing"),
        ({"target": "english"}, "'english' is no language that lingua knows"),
        ({"target": "en", "among": ["en"]}, "at least one language besides"),
        ({"target": "en", "among": "de"}, "must be a list of texts"),
        ({"target": "en", "of": "answer"}, "of='answer'"),
    ],
)
def test_a_language_that_cannot_be_is_the_tasks_fault(parameters: dict[str, object], culprit: str) -> None:
    with pytest.raises(BadTask, match=culprit):
        language_reward(TEXTS["en"], "", {"language": parameters})
