// The entry point of `import`: the same objects as `require` gives, so that a program that mixes the
// two has one class of errors and one global engine.
export * from './index.js';
