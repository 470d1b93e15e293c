"""All checks, in the order of the report."""

from ddit.doctor.machine import kernel_checks, machine_checks
from ddit.doctor.models import model_checks
from ddit.doctor.report import Check
from ddit.doctor.training import real_size_checks, training_checks


def list_checks(*, train: bool = False) -> list[Check]:
    """train: those of training too."""
    checks = [*machine_checks(), *kernel_checks(), *model_checks()]
    return [*checks, *training_checks(), *real_size_checks()] if train else checks
