"""What the tasks in this folder show, and how they score."""

from pathlib import Path

from lmms_eval.tasks._task_utils.vqa_eval_metric import EvalAIAnswerProcessor
from PIL import Image

from ddit.eval.yesno import pope_answer

IMAGES = Path("worldeval/images")
normalize = EvalAIAnswerProcessor()


def doc_to_visual(doc):
    return [Image.open(IMAGES / doc["image"]).convert("RGB")]


def easy_vqa_to_visual(doc):
    return [Image.open(Path("images") / doc["image"]).convert("RGB")]


def score_pope(doc, results):
    """POPE's official rule. lmms-eval's own task instead takes what is not yes or no itself for wrong."""
    return {"accuracy": float(pope_answer(results[0]) == doc["label"])}


def score_vizwiz(doc, results):
    """VQA's accuracy, each person left out in turn; the answer normalised by lmms-eval's processor."""
    text, answers = normalize(results[0]), [each["answer"] for each in doc["answers"]]
    agree = [sum(other == text for other in answers) - (answer == text) for answer in answers]
    return {"accuracy": sum(min(number / 3, 1) for number in agree) / len(answers)}


def ask_twice(doc, previous_output=None, round_idx=None, **_):
    """A caption, which needs no prompt, then POPE's question: visuals, prompt, is it over, texts, notes."""
    if round_idx is None:
        return ""
    if round_idx == 1:
        return doc_to_visual(doc), doc["text"], False, previous_output, None
    return None, None, True, previous_output, None


def score_last_round(doc, results):
    return score_pope(doc, results[0][-1:])
