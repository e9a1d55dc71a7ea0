// A name for a request by what it asks, whatever the order of its fields: SHA-256 of its JSON with
// sorted keys. Fields that are undefined do not count.

import { createHash } from 'node:crypto';

export function fingerprint(value: unknown): string {
  return createHash('sha256').update(canonical(value)).digest('hex');
}

/** Refuses what JSON cannot tell apart (functions, NaN): two such requests may differ. */
export function canonical(value: unknown): string {
  if (Array.isArray(value)) return `[${value.map(canonical).join(',')}]`;
  if (value !== null && typeof value === 'object') {
    const fields = Object.entries(value)
      .filter(([, field]) => field !== undefined)
      .sort(([a], [b]) => (a < b ? -1 : 1))
      .map(([key, field]) => `${JSON.stringify(key)}:${canonical(field)}`);
    return `{${fields.join(',')}}`;
  }
  if (typeof value === 'number' && !Number.isFinite(value)) {
    throw new TypeError(`no fingerprint of ${value}`);
  }
  const text = JSON.stringify(value);
  if (text === undefined) throw new TypeError(`no fingerprint of a ${typeof value}`);
  return text;
}

/** Whether the same request gives the same answer: greedy, or with a seed. */
export function isDeterministic(params: {
  temperature?: number | undefined; seed?: number | undefined;
}): boolean {
  return params.temperature === 0 || params.seed !== undefined;
}
