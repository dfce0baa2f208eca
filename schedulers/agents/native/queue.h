/* SPDX-License-Identifier: Apache-2.0 */
/* What queue.c and priority_queue.c share. Both kinds of queue are lists of places in the order of the tasks. */
#ifndef GHOSTBPF_QUEUE_H
#define GHOSTBPF_QUEUE_H

#include "native.h"

/* A new place of task in queue, the first member of `size` bytes that are else 0; not in the list yet. NULL with an exception. */
struct place *place_new(struct queue *queue, struct task *task, size_t size);
/* Put place into the list, after `before`. */
void place_link(struct place *place, struct place *before);

/* Take a place that is in the list no more out of the order of ranks; returns its rank. */
PyObject *ranked_remove(struct place *place);

/* A list of the tasks. */
PyObject *queue_tasks(struct queue *queue);
/* object as a Task, or NULL with an exception. */
struct task *checked_task(PyObject *object);

/* Slots and methods of both types. */
PyObject *queue_new(PyTypeObject *type, PyObject *args, PyObject *keywords);
int queue_clear(PyObject *self);
void queue_dealloc(PyObject *self);
Py_ssize_t queue_length(PyObject *self);
int queue_contains(PyObject *self, PyObject *object);
PyObject *queue_discard_method(PyObject *self, PyObject *object);
PyObject *queue_pop_method(PyObject *self, PyObject *cpu);

/* match(): see the Python method. */
PyObject *queue_match(PyObject *self, PyObject *const *args, Py_ssize_t count);

#endif
