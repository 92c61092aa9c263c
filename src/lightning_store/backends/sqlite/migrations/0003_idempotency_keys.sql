-- Rollouts that were queued under an idempotency key have ids that follow from it, and the fingerprint of their batch.

ALTER TABLE rollouts ADD COLUMN fingerprint TEXT;
