"""The shape of the work: a chain per generation, a chord per batch.

The chord is bound late. Its members are published one by one, as they are admitted, all with the
batch's group id and the same body; how many there will be is told to the result backend with the
first. A member that is published twice has the same task id and place, and counts once.

The chord is the fast path, the rows are the guarantee: a worker that is killed between storing a
result and counting it loses the chord, and then the sweep finalises the batch.
"""

from celery import chain, current_app

from batches.models import Member


def publish(member: Member) -> None:
    """Send one admitted generation on its way, from wherever its rows say that it stands."""
    generation_id, lease_id = str(member.generation_id), str(member.lease_id)
    steps = chain(
        current_app.signature(
            "work.generate", args=(generation_id, lease_id, member.turn), immutable=True
        ),
        current_app.signature("work.download", args=(generation_id, lease_id)),
    )
    if not member.has_chord:
        steps.apply_async(task_id=generation_id, ignore_result=True)
        return
    group_id = str(member.batch_id)
    if member.chord_size is not None:
        # Semi-internal: what `chord.run` calls before it publishes a header of known length.
        current_app.backend.set_chord_size(group_id, member.chord_size)
    steps.apply_async(
        task_id=generation_id,
        ignore_result=True,  # else a process that knows no tasks subscribes to it
        group_id=group_id,
        group_index=member.index,
        chord=current_app.signature("work.finalise_batch", args=(group_id,), immutable=True),
    )
