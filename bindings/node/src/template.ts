// Prompt templates: {{ word }} and nothing else. No expressions, no function constructor, no cache.
import { EngineClientError } from './errors.js';

const PLACE = /\{\{\s*([A-Za-z0-9_]+)\s*\}\}/g;

/** Missing and null give an empty text; only strings, booleans and finite numbers are legal. */
export function renderTemplate(template: string, variables: Record<string, unknown> = {}): string {
  return template.replace(PLACE, (_, name: string) => {
    const value = Object.hasOwn(variables, name) ? variables[name] : undefined;
    if (value === undefined || value === null) return '';
    if (typeof value === 'string' || typeof value === 'boolean') return String(value);
    if (typeof value === 'number' && Number.isFinite(value)) return String(value);
    throw new EngineClientError('GenerationError',
      `template variable '${name}' must be a string, a boolean or a finite number`,
      { field: `prompt.variables.${name}` });
  });
}
