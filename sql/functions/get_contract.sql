CREATE OR REPLACE FUNCTION pljobs.get_contract_v1(OUT release text, OUT oldest integer, OUT newest integer)
LANGUAGE plpgsql STABLE SECURITY DEFINER
SET search_path = pg_catalog, pg_temp
AS $$
-- Which release of pljobs this schema is, and which contracts workers may speak with it. A contract is a
-- number for the set of functions that a worker calls: 1 since 0.1.0; 2, with register_worker_v2, since
-- 0.2.0; 3, with next_fetch_v1, prune_jobs_v2 and the outcome 'unstarted', since 0.3.0. Where this
-- function does not exist, it is 0.1.0. Locks nothing, notifies nobody.
BEGIN
    release := '0.3.7';
    oldest := 1;
    newest := 3;
END
$$;
COMMENT ON FUNCTION pljobs.get_contract_v1()
    IS 'The release of this schema, and the contracts that it serves. Driver contract, version 1.';
