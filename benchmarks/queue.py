"""A queue of any length, as rows, made by the database itself."""

from django.db import connection, transaction

BATCH_SIZE = 100

# Nothing is dropped or switched off but the look-up of foreign keys, which are right by design.
_FILL = """
SET LOCAL session_replication_role = replica;

CREATE TEMPORARY TABLE filling ON COMMIT DROP AS
SELECT n AS number, nextval(pg_get_serial_sequence('auth_user', 'id'))::int AS owner_id
FROM generate_series(1, %(users)s) n;

INSERT INTO auth_user (id, username, password, first_name, last_name, email, is_superuser,
                       is_staff, is_active, date_joined)
SELECT owner_id, 'queue-' || owner_id, '!', '', '', '', false, false, true, now() FROM filling;

INSERT INTO batches_lane (owner_id, cap, cap_is_own, weight, running, queued, vtime)
SELECT owner_id, %(cap)s, false, 1, 0, %(per_user)s, 0 FROM filling;

CREATE TEMPORARY TABLE filling_batch ON COMMIT DROP AS
SELECT gen_random_uuid() AS id, owner_id, number, part,
       least(%(batch_size)s, %(per_user)s - part * %(batch_size)s) AS size
FROM filling, generate_series(0, (%(per_user)s - 1) / %(batch_size)s) part;

INSERT INTO batches_batch (id, owner_id, name, status, priority, settings, style, genre, tags,
                           total_count, completed_count, failed_count, cancelled_count, cost_usd,
                           version, created_at)
SELECT id, owner_id, '', 'pending', 3, '{}', '', '', '{}', size, 0, 0, 0, 0, 1, now()
FROM filling_batch;

INSERT INTO batches_generation (id, owner_id, batch_id, index, status, priority, name, custom_id,
                                metadata, prompt, final_prompt, negative_prompt, seed, model,
                                settings, input, provider, progress, attempt_count, retry_count,
                                deleted_image_count, error_code, error_message, cost_usd, version,
                                created_at)
SELECT gen_random_uuid(), owner_id, id, place, 'queued', 3, '', '', '{}', 'a lighthouse',
       'a lighthouse', '', 7, 'black-forest-labs/flux-schnell', '{}',
       '{"prompt": "a lighthouse", "seed": 7}', 'replicate', 0, 0, 0, 0, '', '', 0, 1,
       now() - interval '1 day' + make_interval(secs => number + part / 1000.0)
FROM filling_batch, generate_series(0, size - 1) place
"""


def fill(*, users: int, per_user: int, cap: int) -> None:
    """Put `per_user` generations of each of so many new users in line, oldest users first."""
    values = {"users": users, "per_user": per_user, "cap": cap, "batch_size": BATCH_SIZE}
    with transaction.atomic(), connection.cursor() as cursor:
        cursor.execute(_FILL, values)


def settle() -> None:
    """Do what autovacuum would do in time, so that it does not do it while the clock runs."""
    with connection.cursor() as cursor:
        cursor.execute("VACUUM (ANALYZE)")
        cursor.execute("CHECKPOINT")
