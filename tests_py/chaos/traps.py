"""Catch a session in the middle of a transition, so that harm can be done there and not just near it."""

from __future__ import annotations

from chaos.rig import Rig

# What a crash empties is an unlogged table: so nobody is caught after it.
_SET = """
    CREATE UNLOGGED TABLE public.trap (is_now text);
    CREATE FUNCTION public.spring() RETURNS trigger LANGUAGE plpgsql SECURITY DEFINER AS $$
    BEGIN
        IF EXISTS (SELECT FROM public.trap AS t WHERE t.is_now = NEW.status)
           AND pg_try_advisory_xact_lock(4711, 4711) THEN
            PERFORM pg_sleep(60);
        END IF;
        RETURN NULL;
    END $$;
    CREATE TRIGGER trap AFTER UPDATE ON pljobs.job FOR EACH ROW
        WHEN (OLD.status IS DISTINCT FROM NEW.status) EXECUTE FUNCTION public.spring();
"""
_CAUGHT = """
    SELECT a.pid FROM pg_stat_activity AS a
     WHERE a.datname = current_database() AND a.wait_event = 'PgSleep'
"""


def build(rig: Rig) -> None:
    """Make the trap, which catches nobody yet."""
    with rig.connect() as conn:
        conn.execute(_SET)


def set_for(rig: Rig, status: str) -> None:
    """Have the next session stop that gives a job this status: the job is changed, and not committed."""
    with rig.connect() as conn:
        conn.execute("INSERT INTO public.trap VALUES (%s)", [status])


def somebody_caught(rig: Rig) -> bool:
    """Say whether somebody is in the trap."""
    return bool(rig.rows(_CAUGHT))
