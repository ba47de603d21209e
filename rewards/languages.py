"""Words about answers, in the languages that models answer in: what an answer is called, what denies it, takes it back,
or leaves it open. Every pattern takes time linear in the text."""

# ruff: noqa: RUF001 (letters that look like those of ASCII are other languages' own)

from __future__ import annotations

import re

_NAMES = (
    r"(?:answers?|solution|result|option|choice|antwort|ergebnis|lösung|réponse|résultat|respuesta|resultado|solución"
    r"|risposta|risultato|soluzione|resposta|solução|antwoord|ответ|результат|odpowiedź|wynik|cevap|答案|结果|結果|答え|解"
    r"|정답|답|故选|الجواب|الإجابة|उत्तर|đáp (?:án|số)|kết quả|jawaban(?:nya)?|svar(?:et)?|odpověď|απάντηση|відповідь)"
    r"(?:\s(?:finale?|correcta?))?"
)
_IS = r"(?:is|are|was|est|es|ist|lautet|beträgt|è|é|är|er|là|adalah|wynosi)(?![a-zà-ÿ])"
_NOT = r"(?:not|nicht|kein\w{0,2}|pas|no|non|não|niet|nie|inte|не|bukan|không)(?!\w)|ليس|नहीं|不是|而不是|不为|并非"
ANCHOR = re.compile(
    rf"(?<!解){_NAMES}[*_\s]{{0,4}}(?:{_IS}|(?<!解)[:=]|هو|هي|は|是|为|為|等于|은|-(?=\s))[*_:\s]{{0,6}}"
    r"(?:(?:igual a|gleich|égale? à|uguale a|equal to)\s)?"
    r"|answers?\s{0,4}(?=\$|\\[(\[])|उत्तर\s",
    re.IGNORECASE,
)
DENIED = re.compile(
    rf"{_NAMES}\s{{0,2}}(?:n'|ne |to |can |could )?(?:{_IS})?\s{{0,2}}(?:{_NOT}|n't)"
    rf"|{_NAMES}.{{0,40}}?(?:では?ない|じゃない|가 아|이 아)",
    re.IGNORECASE,
)
NOT_ANOTHER = re.compile(
    rf"(?:,|\s)\s{{0,3}}\(?(?:but |and |und |а |y |et |e )?(?:{_NOT}|rather than|instead of|statt)\s?"
    r"(?=[-$\\(0-9]|[a-z]\b).*",
    re.IGNORECASE | re.DOTALL,
)
ENDS_A_SENTENCE = re.compile(r"\s?(?:です|である|だ|になります|입니다|이다|है)\s*$")
CORRECTION = re.compile(
    r"[.!?\n]\s{0,3}(?:but )?(?:(?:wait|hmm|hold on|actually|correction|espera|attends|warte|нет|подожди)\b"
    r"|(?:no|non|nein|não|нет|不|いや|아니),|不对|等等|待って|잠깐)",
    re.IGNORECASE,
)
_TAKES_BACK = re.compile(
    r"\b(?:wait|hmm|hold on|actually|correction|sorry|mistaken?|wrong|incorrect|not|no|instead|rather|meant?|guess|or"
    r"|maybe|perhaps|possibly|second thought|check\w*|fails?|fix\w*|alternatively|otherwise|but)\b|n't\b",
    re.IGNORECASE,
)
_TRIES = re.compile(r"\b(?:try|tries|tried|attempt\w*|initial\w*|at first|guess\w*|review\w*)\b", re.IGNORECASE)
_UNSURE = re.compile(
    r"\b(?:unless|maybe|perhaps|possibly|or else|not sure)\b|\beither\s+\$?[-0-9]"
    r"|[0-9]\$?\s+or\s+\$?-?[0-9]+(?!\s?[a-zA-Z0-9(^*/+=-])"
    r"|\b(?:could|might|may) be\b.{1,60}\b(?:could|might|may) be\b",
    re.IGNORECASE,
)
_OR = re.compile(r"\b(?:or|guess|alternatively)\b", re.IGNORECASE)
_DENIED_BEFORE = re.compile(
    rf"(?:{_NOT}|n't|cannot be|không phải)(?: be| là| equal(?: to)?)?[\s$*(\\]*$", re.IGNORECASE
)
_DENIED_AFTER = re.compile(
    r"[\s$*)\\\]]*(?:(?:is|was)(?: not|n't)(?: it\b| the\b| right| correct|[\s.]*$)"
    r"|(?:is|was) (?:wrong|false|incorrect)|değil|\?|(?:ist|est|es) (?:falsch|faux|falso|incorrecto))",
    re.IGNORECASE,
)


def takes_back(ahead: str, between: str) -> bool:
    """Whether words ahead of an answer or between it and the next take it back, or leave open which it is."""
    return bool(_TAKES_BACK.search(between) or _TRIES.search(ahead) or _TRIES.search(between))


def unsure(text: str) -> bool:
    """Whether a sentence leaves open which of its answers it means."""
    return bool(_UNSURE.search(text))


def joins(text: str) -> bool:
    """Whether words between two answers make them one list of guesses: or, perhaps."""
    return bool(_OR.search(text) or _UNSURE.search(text))


def denied(text: str, start: int, end: int) -> bool:
    """Whether the words beside an answer deny it: not 5, 5 is wrong, 5?"""
    return bool(_DENIED_BEFORE.search(text[max(0, start - 40) : start]) or _DENIED_AFTER.match(text[end : end + 60]))
