// The validators of the surface: {valid, errors[]} and the throwing form of each.
import type { Named } from './aliases.js';
import {
  checkGeneratorParams, checkLoadModelOptions, checkTokenizeRequest,
} from './check.js';
import { EngineClientError } from './errors.js';
import type { FieldIssue } from './issues.js';
import { ModelIdSchema } from './schemas.js';
import type { GeneratorParams, LoadModelOptions, TokenizeRequest } from './types.js';

export interface ValidationResult {
  valid: boolean;
  errors: string[];
}

function validate(run: () => unknown): ValidationResult {
  try {
    run();
    return { valid: true, errors: [] };
  } catch (error) {
    if (!(error instanceof EngineClientError)) throw error;
    const issues = (error.details as { issues?: FieldIssue[] } | undefined)?.issues;
    return { valid: false, errors: issues?.map((issue) => issue.message) ?? [error.message] };
  }
}

export const validateLoadModelOptions = (input: unknown): ValidationResult =>
  validate(() => checkLoadModelOptions(input));
export const validateGeneratorParams = (input: unknown): ValidationResult =>
  validate(() => checkGeneratorParams(input));
export const validateTokenizeRequest = (input: unknown): ValidationResult =>
  validate(() => checkTokenizeRequest(input));

export function assertValidLoadModelOptions(input: unknown):
  asserts input is string | Named<LoadModelOptions> {
  checkLoadModelOptions(input);
}
export function assertValidGeneratorParams(input: unknown):
  asserts input is Named<GeneratorParams> {
  checkGeneratorParams(input);
}
export function assertValidTokenizeRequest(input: unknown):
  asserts input is Named<TokenizeRequest> {
  checkTokenizeRequest(input);
}

/** Whether the runtime would take it as a name; `org/name` and paths are names. */
export const isValidModelIdFormat = (id: unknown): boolean => ModelIdSchema.safeParse(id).success;

/** The id without surrounding white space, or an error that names what is wrong with it. */
export function sanitizeModelId(id: string): string {
  const trimmed = typeof id === 'string' ? id.trim() : undefined;
  if (trimmed !== undefined && isValidModelIdFormat(trimmed)) return trimmed;
  throw new EngineClientError('InvalidParams', `'${trimmed ?? typeof id}' is no model id`, { field: 'model' });
}

export function clamp(value: number, min: number, max: number): number {
  return Math.min(Math.max(value, min), max);
}
/** Into 0..2; what is no number becomes the default 0.7. */
export const normalizeTemperature = (value?: number): number =>
  value === undefined || Number.isNaN(value) ? 0.7 : clamp(value, 0, 2);
/** Into (0, 1]; what is no number, or not above 0, becomes the default 1. */
export const normalizeTopP = (value?: number): number =>
  value === undefined || Number.isNaN(value) || value <= 0 ? 1 : Math.min(value, 1);
