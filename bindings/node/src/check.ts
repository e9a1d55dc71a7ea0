// Normalise, check, and hand on as the type that the rest of the package trusts.
import type { z } from 'zod';
import { EngineClientError } from './errors.js';
import type { EngineErrorCode } from './errors.js';
import { failOfIssues, issuesOf } from './issues.js';
import {
  normalizeDetokenizeRequest, normalizeEmbedRequest, normalizeGeneratorParams,
  normalizeLoadModelOptions, normalizeTokenizeRequest,
} from './normalize.js';
import {
  CountTokensRequestSchema, CreateGeneratorOptionsSchema, DetokenizeRequestSchema,
  EmbedRequestSchema, GeneratorParamsSchema, LoadModelOptionsSchema, TokenizeOptionsSchema,
  TokenizeRequestSchema,
} from './schemas.js';
import type {
  CountTokensRequest, CreateGeneratorOptions, DetokenizeRequest, EmbedRequest, GeneratorParams,
  LoadModelOptions, TokenizeOptions, TokenizeRequest,
} from './types.js';

function check<T>(what: string, schema: z.ZodType, value: unknown,
  code?: (fields: string[]) => EngineErrorCode): T {
  const parsed = schema.safeParse(value);
  if (parsed.success) return parsed.data as T;
  const fields = issuesOf(parsed.error.issues).map((issue) => issue.field);
  throw failOfIssues(what, parsed.error.issues, '', code?.(fields) ?? 'InvalidParams');
}

function need(what: string, value: Record<string, unknown> | undefined): Record<string, unknown> {
  if (value !== undefined) return value;
  throw new EngineClientError('InvalidParams', `${what}: an object is needed`, { field: 'params' });
}

export const checkGeneratorParams = (input: unknown): GeneratorParams =>
  check('generate', GeneratorParamsSchema, need('generate', normalizeGeneratorParams(input)),
    (fields) => (fields.includes('structured') ? 'GuidanceError' : 'InvalidParams'));
export const checkGeneratorOptions = (input: unknown): CreateGeneratorOptions =>
  check('generate', CreateGeneratorOptionsSchema, input ?? {});
export const checkTokenizeRequest = (input: unknown): TokenizeRequest =>
  check('tokenize', TokenizeRequestSchema, need('tokenize', normalizeTokenizeRequest(input)));
export const checkTokenizeOptions = (input: unknown): TokenizeOptions =>
  check('tokenize', TokenizeOptionsSchema, input ?? {});
export const checkDetokenizeRequest = (input: unknown): DetokenizeRequest =>
  check('detokenize', DetokenizeRequestSchema,
    need('detokenize', normalizeDetokenizeRequest(input)));
export const checkCountRequest = (input: unknown): CountTokensRequest =>
  check('countTokens', CountTokensRequestSchema,
    need('countTokens', normalizeTokenizeRequest(input)));
export const checkEmbedRequest = (input: unknown): EmbedRequest =>
  check('embed', EmbedRequestSchema, need('embed', normalizeEmbedRequest(input)));

export function checkModelId(what: string, id: unknown): string {
  if (typeof id === 'string' && id !== '') return id;
  throw new EngineClientError('InvalidParams', `${what}: 'id' must be the name of a model`,
    { field: 'id' });
}

/** `org/name@revision` is a model and its revision; a path is a path. */
function splitRevision(options: Record<string, unknown>): Record<string, unknown> {
  const model = options['model'];
  if (typeof model !== 'string' || options['revision'] !== undefined) return options;
  const match = /^([^@]+)@([A-Za-z0-9._-]+)$/.exec(model);
  const isPath = /^[./]/.test(model) || model.endsWith('.gguf');
  if (match === null || isPath) return options;
  return { ...options, model: match[1], revision: match[2] };
}

export const checkLoadModelOptions = (input: unknown): LoadModelOptions =>
  check('loadModel', LoadModelOptionsSchema,
    splitRevision(need('loadModel', normalizeLoadModelOptions(input))));
