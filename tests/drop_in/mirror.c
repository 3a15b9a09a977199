/* A plugin for layers (`plugin.h` of fuse-overlayfs 1.x): PATH/0, PATH/1 and so on as they are, DATA of them.
 * It wants to find the workdir, and leaves a file PATH/released at the end. "exits" in the place of a number, and a lookup of
 * "exit", end the process; one of "hang" does what never ends, and shortens the time that is given to it. */
#define _GNU_SOURCE
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/xattr.h>
#include <unistd.h>

#ifndef VERSION
#define VERSION 1
#endif

struct source;
struct mount {
	void *others[9];
	const char *workdir;
};
struct layer {
	struct layer *next;
	struct source *source;
	struct mount *mount;
	char *path;
	int fd;
	bool low;
	void *own;
};

static int count(const char *data, const char *path)
{
	(void)path;
	return atoi(data);
}

static int place = -1;

static int load(struct layer *layer, const char *data, const char *path, int number)
{
	char *at;
	(void)data;
	if (access(layer->mount->workdir, W_OK) != 0)
		return -1;
	if (place < 0)
		place = open(path, O_DIRECTORY | O_CLOEXEC);
	if (asprintf(&at, "%s/%d", path, number) < 0)
		return -1;
	layer->fd = open(at, O_DIRECTORY | O_CLOEXEC);
	/* Programs that serve layers leave the directory that they were started in. */
	layer->own = realpath(at, NULL);
	free(at);
	return layer->fd < 0 ? -1 : 0;
}

static int end(struct layer *layer)
{
	free(layer->own);
	return close(layer->fd);
}

static int look(struct layer *layer, const char *path, struct stat *found, int flags, unsigned mask)
{
	(void)mask;
	if (strcmp(path, "exit") == 0)
		_exit(3);
	if (strcmp(path, "hang") == 0 && alarm(1) > 60)
		for (;;)
			pause();
	if (fstatat(layer->fd, path, found, flags) != 0)
		return -1;
#ifdef OWNER
	found->st_uid = OWNER;
#endif
	return 0;
}

static void *open_dir(struct layer *layer, const char *path)
{
	int fd = openat(layer->fd, path, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
	return fd < 0 ? NULL : fdopendir(fd);
}

static struct dirent *read_dir(void *dir)
{
	return readdir(dir);
}

static int close_dir(void *dir)
{
	return closedir(dir);
}

static int open_file(struct layer *layer, const char *path, int flags, mode_t mode)
{
	return openat(layer->fd, path, flags, mode);
}

static char *full(struct layer *layer, const char *path)
{
	static char at[8192];
	snprintf(at, sizeof at, "%s/%s", (char *)layer->own, path);
	return at;
}

static int names(struct layer *layer, const char *path, char *buffer, size_t size)
{
	return llistxattr(full(layer, path), buffer, size);
}

static int value(struct layer *layer, const char *path, const char *name, char *buffer, size_t size)
{
	return lgetxattr(full(layer, path), name, buffer, size);
}

static ssize_t target(struct layer *layer, const char *path, char *buffer, size_t size)
{
	return readlinkat(layer->fd, path, buffer, size);
}

static int exists(struct layer *layer, const char *path)
{
	return faccessat(layer->fd, path, R_OK, AT_SYMLINK_NOFOLLOW | AT_EACCESS);
}

static int look_open(struct layer *layer, int fd, const char *path, unsigned mask, struct stat *found)
{
	(void)layer, (void)path, (void)mask;
	return fstat(fd, found);
}

static struct source {
	int (*count)(const char *, const char *);
	int (*load)(struct layer *, const char *, const char *, int);
	int (*end)(struct layer *);
	int (*exists)(struct layer *, const char *);
	int (*look)(struct layer *, const char *, struct stat *, int, unsigned);
	int (*look_open)(struct layer *, int, const char *, unsigned, struct stat *);
	void *(*open_dir)(struct layer *, const char *);
	struct dirent *(*read_dir)(void *);
	int (*close_dir)(void *);
	int (*open_file)(struct layer *, const char *, int, mode_t);
	int (*names)(struct layer *, const char *, char *, size_t);
	int (*value)(struct layer *, const char *, const char *, char *, size_t);
	ssize_t (*target)(struct layer *, const char *, char *, size_t);
} source = {
	count, load, end, exists, look, look_open, open_dir, read_dir, close_dir, open_file, names, value, target,
};

int plugin_version(void)
{
	return VERSION;
}

const char *plugin_name(void)
{
	return "mirror";
}

struct source *plugin_load(const char *data, const char *path)
{
	(void)path;
	if (strcmp(data, "exits") == 0)
		_exit(3);
	return atoi(data) > 0 ? &source : NULL;
}

int plugin_release(void)
{
	return openat(place, "released", O_CREAT | O_WRONLY | O_CLOEXEC, 0600);
}
