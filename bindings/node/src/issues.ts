// From what a schema found to the error that a caller sees.
import type { z } from 'zod';
import { EngineClientError } from './errors.js';
import type { EngineErrorCode } from './errors.js';

export interface FieldIssue {
  field: string;
  message: string;
}

const EXPECTED: Record<string, string> = {
  int: 'a whole number', number: 'a number', string: 'a string', boolean: 'true or false',
  array: 'an array', object: 'an object', record: 'an object',
};

function text(issue: z.core.$ZodIssue, field: string): string {
  if (issue.code === 'invalid_type' && issue.expected in EXPECTED) {
    return `'${field}' must be ${EXPECTED[issue.expected]}`;
  }
  if (issue.code === 'invalid_union') return `'${field}' has none of the forms that it may have`;
  return `'${field}': ${issue.message}`;
}

function join(prefix: string, path: readonly PropertyKey[]): string {
  return [...(prefix === '' ? [] : [prefix]), ...path.map(String)].join('.');
}

/** One entry for each field; an unknown key is one of its own. */
export function issuesOf(issues: readonly z.core.$ZodIssue[], prefix = ''): FieldIssue[] {
  const found: FieldIssue[] = [];
  for (const issue of issues) {
    if (issue.code === 'unrecognized_keys') {
      for (const key of issue.keys) {
        const field = join(prefix, [...issue.path, key]);
        found.push({ field, message: `'${field}' is not a known field` });
      }
      continue;
    }
    const field = join(prefix, issue.path) || 'params';
    found.push({ field, message: text(issue, field) });
  }
  return found;
}

export function failOfIssues(what: string, issues: readonly z.core.$ZodIssue[], prefix = '',
  code: EngineErrorCode = 'InvalidParams'): EngineClientError {
  const found = issuesOf(issues, prefix);
  const message = found.map((issue) => issue.message).join('; ');
  return new EngineClientError(code, `${what}: ${message}`,
    { field: found[0]?.field ?? '', issues: found });
}
