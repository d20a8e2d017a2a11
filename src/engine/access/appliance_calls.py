"""The calls of libguestfs that are used here, as cffi reads them.

Source: guestfs(3). A structure there only ever grows at its end.
"""

HEADER = """
typedef struct guestfs_h guestfs_h;
struct guestfs_statns {
  int64_t st_dev; int64_t st_ino; int64_t st_mode; int64_t st_nlink; int64_t st_uid;
  int64_t st_gid; int64_t st_rdev; int64_t st_size; int64_t st_blksize; int64_t st_blocks;
  int64_t st_atime_sec; int64_t st_atime_nsec; int64_t st_mtime_sec; int64_t st_mtime_nsec;
  int64_t st_ctime_sec; int64_t st_ctime_nsec; int64_t st_spare1; int64_t st_spare2;
  int64_t st_spare3; int64_t st_spare4; int64_t st_spare5; int64_t st_spare6;
};
struct guestfs_statns_list { uint32_t len; struct guestfs_statns *val; };
struct guestfs_statvfs {
  int64_t bsize; int64_t frsize; int64_t blocks; int64_t bfree; int64_t bavail; int64_t files;
  int64_t ffree; int64_t favail; int64_t fsid; int64_t flag; int64_t namemax;
};
void free (void *);
guestfs_h *guestfs_create_flags (unsigned flags, ...);
void guestfs_close (guestfs_h *g);
const char *guestfs_last_error (guestfs_h *g);
int guestfs_last_errno (guestfs_h *g);
void guestfs_set_error_handler (guestfs_h *g, void *call, void *data);
int guestfs_set_backend (guestfs_h *g, const char *backend);
int guestfs_set_backend_settings (guestfs_h *g, char *const *settings);
int guestfs_set_autosync (guestfs_h *g, int yes);
int guestfs_set_recovery_proc (guestfs_h *g, int yes);
int guestfs_set_path (guestfs_h *g, const char *path);
int guestfs_add_drive_opts (guestfs_h *g, const char *name, ...);
int guestfs_launch (guestfs_h *g);
int guestfs_shutdown (guestfs_h *g);
char **guestfs_list_devices (guestfs_h *g);
int guestfs_blockdev_rereadpt (guestfs_h *g, const char *device);
int guestfs_modprobe (guestfs_h *g, const char *module);
char *guestfs_debug (guestfs_h *g, const char *what, char *const *words);
int guestfs_drop_caches (guestfs_h *g, int what);
int guestfs_lvm_scan (guestfs_h *g, int activate);
char *guestfs_vfs_type (guestfs_h *g, const char *device);
char *guestfs_dmesg (guestfs_h *g);
int guestfs_mkmountpoint (guestfs_h *g, const char *path);
int guestfs_rmmountpoint (guestfs_h *g, const char *path);
int guestfs_mount_vfs (guestfs_h *g, const char *options, const char *kind,
                       const char *device, const char *path);
int guestfs_umount (guestfs_h *g, const char *path);
struct guestfs_statns *guestfs_lstatns (guestfs_h *g, const char *path);
void guestfs_free_statns (struct guestfs_statns *);
struct guestfs_statns_list *guestfs_lstatnslist (guestfs_h *g, const char *path,
                                                 char *const *names);
void guestfs_free_statns_list (struct guestfs_statns_list *);
char *guestfs_readlink (guestfs_h *g, const char *path);
char **guestfs_readlinklist (guestfs_h *g, const char *path, char *const *names);
char **guestfs_ls (guestfs_h *g, const char *path);
char *guestfs_pread (guestfs_h *g, const char *path, int count, int64_t offset,
                     size_t *length);
int guestfs_pwrite (guestfs_h *g, const char *path, const char *data, size_t length,
                    int64_t offset);
int guestfs_write (guestfs_h *g, const char *path, const char *data, size_t length);
int guestfs_copy_attributes (guestfs_h *g, const char *from, const char *to, ...);
char *guestfs_lgetxattr (guestfs_h *g, const char *path, const char *name, size_t *length);
int guestfs_lsetxattr (guestfs_h *g, const char *name, const char *value, int length,
                       const char *path);
int guestfs_chmod (guestfs_h *g, int mode, const char *path);
int guestfs_lchown (guestfs_h *g, int owner, int group, const char *path);
int guestfs_rename (guestfs_h *g, const char *from, const char *to);
int guestfs_rm (guestfs_h *g, const char *path);
int guestfs_rmdir (guestfs_h *g, const char *path);
int guestfs_mkdir_mode (guestfs_h *g, const char *path, int mode);
int guestfs_ln_s (guestfs_h *g, const char *target, const char *path);
struct guestfs_statvfs *guestfs_statvfs (guestfs_h *g, const char *path);
void guestfs_free_statvfs (struct guestfs_statvfs *);
int guestfs_sync (guestfs_h *g);
"""
